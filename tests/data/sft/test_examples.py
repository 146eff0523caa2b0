"""Reading of instruction files, with errors for malformed records."""

import gzip
import json

import pytest

from lit_illada.data.sft.chat_template import Message, Role
from lit_illada.data.sft.config import AlpacaSource, Gsm8kSource, MessagesSource, ShareGptSource
from lit_illada.data.sft.examples import Example, read_examples
from lit_illada.errors import UserError

TWO_TURNS = (
    Message(Role.SYSTEM, "s"),
    Message(Role.USER, "u"),
    Message(Role.ASSISTANT, "a", "why"),
    Message(Role.USER, "v"),
    Message(Role.ASSISTANT, "b"),
)


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return str(path)


def raise_bad(error):
    raise error


def read(source, fraction=1e-9, on_bad=raise_bad):
    return read_examples(source, fraction, on_bad)


def talk(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_messages_are_parsed_into_roles_and_reasoning(tmp_path):
    file = write(
        tmp_path / "chat.jsonl",
        talk(("system", "s"), ("user", "u"), ("assistant", "<think>\nwhy\n</think>\n\na"), ("user", "v"),
             ("assistant", "b")),
        {"messages": [{"role": "user", "content": "u2"},
                      {"role": "assistant", "content": "1,000", "reasoning_content": "r"}], "answer": 1000},
    )  # fmt: skip
    train, validation = read(MessagesSource([file]))
    assert not validation
    assert train[0].messages == TWO_TURNS
    assert [len(turn.messages) for turn in train[0].turns()] == [3, 5]
    assert train[0].truth is None
    assert train[1].messages[-1] == Message(Role.ASSISTANT, "1,000", "r")
    assert train[1].truth == "1000"
    assert train[1].origin == f"{file}:2"


def chat(*turns, **fields):
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in turns], **fields}


def test_sharegpt_conversations_become_messages(tmp_path):
    file = write(
        tmp_path / "sharegpt.jsonl",
        chat(("system", "s"), ("human", "u"), ("gpt", "<think>why</think>a"), ("human", "v"), ("gpt", "b"), id="x_0"),
        chat(("user", "u2"), ("assistant", "1,000"), system="t", answer="1000"),
    )
    train, _ = read(ShareGptSource([file]))
    assert train[0].messages == TWO_TURNS
    assert train[1].messages == (
        Message(Role.SYSTEM, "t"),
        Message(Role.USER, "u2"),
        Message(Role.ASSISTANT, "1,000"),
    )
    assert train[1].truth == "1000"


def test_alpaca_joins_instruction_and_input(tmp_path):
    file = write(
        tmp_path / "alpaca.jsonl",
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "Hello"},
        {"instruction": "Part.", "output": "Bye"},
    )
    train, _ = read(AlpacaSource([file]))
    assert [[message.content for message in example.messages] for example in train] == [
        ["Add.\n\n1 and 2", "3"],
        ["Greet.", "Hello"],
        ["Part.", "Bye"],
    ]


def test_gsm8k_calculator_annotations_are_removed(tmp_path):
    row = {"question": "How many?", "answer": "He had 48/2 = <<48/2=24>>24.\nSo 1,024.\n#### 1,024"}
    train, _ = read(Gsm8kSource([write(tmp_path / "train.jsonl", row)]))
    assert train[0].messages == (
        Message(Role.USER, "How many?"),
        Message(Role.ASSISTANT, "1,024", "He had 48/2 = 24.\nSo 1,024."),
    )
    assert train[0].truth == "1024"


def test_original_gsm8k_files_are_read_completely(shared_data):
    train_file, test_file = (str(shared_data("gsm8k") / name) for name in ("train.jsonl", "test.jsonl"))
    train, validation = read(Gsm8kSource([train_file], [test_file]))
    assert (len(train), len(validation)) == (7473, 1319)
    for example in train + validation:
        assert example.truth.lstrip("-").replace(".", "").isdecimal()
        assert "<<" not in example.messages[-1].reasoning


BAD = [
    ("messages", '{"messages": [', "not JSON"),
    ("messages", "[1]", "must be an object, not a list"),
    ("messages", {"chat": []}, "no field 'messages'; fields seen: chat"),
    ("messages", {"messages": "hi"}, "field 'messages' is a str, not a list"),
    ("messages", {"messages": ["hi"]}, "message 1: a message must be an object with role and content"),
    ("messages", {"messages": [{"content": "hi"}]}, "message 1: no field 'role'; fields seen: content"),
    ("messages", talk(("user", "u"), ("asistant", "a")), "'asistant'.*did you mean 'assistant'"),
    ("messages", {"messages": [{"role": "user", "content": None}]}, "field 'content' is a NoneType, not a text"),
    ("messages", talk(("assistant", "a")), "no message with the role 'user'"),
    ("messages", talk(), "no message with the role 'user'; roles seen: none"),
    ("messages", talk(("user", "u"), ("assistant", "a"), ("user", "u")), "the last message must be the assistant's"),
    ("messages", talk(("user", "u"), ("system", "s"), ("assistant", "a")), "a system message must be the first"),
    ("messages", talk(("user", "u"), ("assistant", " \n")), "the assistant's answer is empty"),
    ("messages", talk(("user", "u"), ("assistant", "<think>x</think>")), "the assistant's answer is empty"),
    ("messages", talk(("user", "\ud800"), ("assistant", "a")), "an unpaired surrogate"),
    ("sharegpt", {"messages": []}, "no field 'conversations'; fields seen: messages"),
    ("sharegpt", {"conversations": {"from": "human"}}, "field 'conversations' is a dict, not a list"),
    ("sharegpt", {"conversations": ["hi"]}, "message 1: a message must be an object with from and value"),
    ("sharegpt", {"conversations": [{"value": "hi"}]}, "message 1: no field 'from'; fields seen: value"),
    ("sharegpt", {"conversations": [{"from": "human"}]}, "message 1: no field 'value'; fields seen: from"),
    ("sharegpt", chat(("human", None), ("gpt", "a")), "field 'value' is a NoneType, not a text"),
    ("sharegpt", chat(("human", "u"), ("gptt", "a")), "'gptt'.*did you mean 'gpt'"),
    ("sharegpt", chat(("human", "u")), "the last message must be the assistant's; roles seen: user"),
    ("sharegpt", chat(("human", "u"), ("gpt", "")), "the assistant's answer is empty"),
    ("sharegpt", chat(("gpt", "a")), "no message with the role 'user'"),
    ("sharegpt", chat(("human", "u"), ("gpt", "a"), system=3), "field 'system' is a int, not a text"),
    ("sharegpt", chat(("system", "s"), ("human", "u"), ("gpt", "a"), system="t"), "a system message must be"),
    ("alpaca", {"instruction": "i", "input": ""}, "no field 'output'; fields seen: instruction, input"),
    ("alpaca", {"instruction": "", "output": "o"}, "the prompt is empty"),
    ("alpaca", {"instruction": "i", "output": ""}, "the assistant's answer is empty"),
    ("alpaca", {"instruction": "i", "input": 3, "output": "o"}, "field 'input' is a int, not a text"),
    ("gsm8k", {"question": "q", "answer": "12"}, "has no '####'"),
    ("gsm8k", {"question": "q", "answer": "x #### "}, "the assistant's answer is empty"),
    ("gsm8k", {"question": "q", "answer": "x #### many"}, "no number after '####', but 'many'"),
]
SOURCES = {"messages": MessagesSource, "sharegpt": ShareGptSource, "alpaca": AlpacaSource, "gsm8k": Gsm8kSource}
GOOD = {
    "messages": talk(("user", "good"), ("assistant", "a")),
    "sharegpt": chat(("human", "good"), ("gpt", "a")),
    "alpaca": {"instruction": "good", "output": "o"},
    "gsm8k": {"question": "good", "answer": "s #### 1"},
}


@pytest.mark.parametrize(("kind", "row", "message"), BAD)
def test_bad_record_is_named_with_its_line_and_others_are_read(tmp_path, kind, row, message):
    file = write(tmp_path / "some.jsonl", GOOD[kind], "", row, GOOD[kind])
    with pytest.raises(UserError, match=message) as caught:
        read(SOURCES[kind]([file]))
    assert f"{file}:3" in str(caught.value)
    assert "\n" not in str(caught.value)
    errors = []
    train, _ = read(SOURCES[kind]([file]), on_bad=errors.append)
    assert len(train) == 2
    assert [str(error) for error in errors] == [str(caught.value)]


def test_missing_files_are_rejected(tmp_path):
    with pytest.raises(UserError, match=r"sft_data\.source\.paths is empty"):
        read(MessagesSource())
    with pytest.raises(UserError, match="no such file"):
        read(MessagesSource([str(tmp_path / "chats.jsonl")]))


def test_compressed_file_reads_the_same_as_plain_one(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(GOOD["alpaca"]).encode()))
    assert read(AlpacaSource([str(tmp_path)]))[0][0].messages[1].content == "o"


def test_splits_have_no_common_prompt_and_are_independent_of_other_records(tmp_path):
    rows = [{"instruction": f"i{n % 300}", "output": f"o{n}"} for n in range(600)]
    train, validation = read(AlpacaSource([write(tmp_path / "a.jsonl", *rows)]), 0.2)
    assert len(train) + len(validation) == 600
    assert 80 < len(validation) < 160
    held_out = {example.messages[0].content for example in validation}
    assert not held_out & {example.messages[0].content for example in train}
    half = read(AlpacaSource([write(tmp_path / "b.jsonl", *rows[:150])]), 0.2)[1]
    assert {example.messages[0].content for example in half} == held_out & {f"i{n}" for n in range(150)}


def test_prompts_of_validation_files_are_removed_from_training(tmp_path):
    rows = [{"instruction": f"i{n}", "output": "o"} for n in range(20)]
    source = AlpacaSource([write(tmp_path / "a.jsonl", *rows)], [write(tmp_path / "b.jsonl", *rows[:5])])
    train, validation = read(source)
    assert [example.messages[0].content for example in validation] == [f"i{n}" for n in range(5)]
    assert [example.messages[0].content for example in train] == [f"i{n}" for n in range(5, 20)]


def test_prompt_digest_depends_on_everything_but_the_last_answer():
    one = Example((Message(Role.USER, "u"), Message(Role.ASSISTANT, "a")), "x")
    two = Example((Message(Role.USER, "u"), Message(Role.ASSISTANT, "b", "r")), "y")
    three = Example((Message(Role.SYSTEM, "u"), Message(Role.ASSISTANT, "a")), "x")
    assert one.prompt_digest == two.prompt_digest != three.prompt_digest

"""Chained arithmetic is judged by the answer that follows the reasoning segment."""

import json
from types import SimpleNamespace

import pytest

from lit_illada.data.sft.chat_template import ChatTemplate, Message, Role
from lit_illada.data.sft.config import RoleTokens
from lit_illada.data.sft.examples import Example
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.evaluation.chained_arithmetic import ChainedArithmetic, scalars
from lit_illada.evaluation.writer import Writer, Written
from lit_illada.generation.canvas import RowEvents
from lit_illada.generation.trace import Trace

TOKENIZER = Tokenizer.train(["f=3+1=0 and g=0+2=0"], 300)


QUESTION = "f=3+1\ng=x+2\nx mod 10?"


class FixedWriter:
    """A writer that returns given texts in turn, in which </> closes the reasoning segment."""

    details = Writer.details
    tokenizer = TOKENIZER
    generation = SimpleNamespace(max_new_tokens=64)
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=512))

    def __init__(self, *answers):
        """answers: (text, whether it stops) of each problem."""
        self.answers = answers

    def write(self, prompts, is_traced):
        for _, (text, is_stopped) in zip(prompts, self.answers, strict=True):
            reasoning, is_closed, answer = text.partition("</>")
            close = [TOKENIZER.think_close_token_id] if is_closed else []
            ids = [*TOKENIZER.encode(reasoning), *close, *TOKENIZER.encode(answer)]
            places, sure = list(range(len(ids))), [1.0] * len(ids)
            trace = Trace(ids, [0] * len(ids), places, sure, sure, [1] * len(ids))
            yield Written(ids, is_stopped, RowEvents(), 1.0, trace)


def run(folder, examples, *answers):
    """The result of the evaluation and its rows, for problems that are answered with (text, whether it stops)."""
    model = SimpleNamespace(writer=FixedWriter(*answers), template=ChatTemplate(RoleTokens(), TOKENIZER))
    evaluation = ChainedArithmetic({"easy": examples})
    evaluation.check(model)
    result = evaluation.run(model, folder, lambda _name, _size: lambda _done: None)
    with (folder / result["items"]).open(encoding="utf-8") as file:
        return result, [json.loads(line) for line in file]


@pytest.mark.parametrize(
    ("text", "is_stopped", "reasoning", "verdict"),
    [
        ("f=3+1=0\ng=0+2=2", False, "f=3+1=0", False),  # cut off: the last digit is not an answer
        ("f=3+1=0\ng=0+2=2", True, "f=3+1=0", True),
        ("f=3+1=0</>2", False, "f=3+1=0", True),
        ("it is 2", False, "", True),  # data without reasoning segments
        ("it is 3", True, "f=3+1=0", False),
    ],
)
def test_a_text_that_neither_closes_its_reasoning_nor_stops_is_wrong(tmp_path, text, is_stopped, reasoning, verdict):
    example = Example((Message(Role.USER, "f=3+1"), Message(Role.ASSISTANT, "2", reasoning)), "one", "2")
    result, (row,) = run(tmp_path, [example], (text, is_stopped))
    assert row["is_right"] is verdict
    assert result["num_correct"] == verdict


def test_form_and_rechecks_are_those_of_the_endless_texts(tmp_path):
    example = Example((Message(Role.USER, QUESTION), Message(Role.ASSISTANT, "6", "f=3+1=4\ng=4+2=6")), "one", "6")
    recheck = "Wait, let me check again."
    steps = [f"f=3+1={n}" for n in range(8)]
    kept = ("\n".join([*steps[:4], recheck, *steps[4:7], recheck, "g=="]), False)  # 9 of 10 lines are whole
    lost = ("\n".join([*steps[:2], "f=3=+", "+=", "w==4"]), False)  # 2 of 5
    ended = ("f=3+1=4\nf=+\ng=4+2=6</>6", True)  # malformed, but not endless
    result, rows = run(tmp_path, [example] * 4, kept, lost, ended, ended)
    assert [row["share_well_formed"] for row in rows] == pytest.approx([0.9, 0.4, 2 / 3, 2 / 3])
    assert [row["num_rechecks"] for row in rows] == [2, 0, 0, 0]
    assert (result["endless"], result["endless_in_form"]) == (0.5, 0.25)
    assert (result["endless_well_formed"], result["endless_rechecks"]) == (pytest.approx(0.65), 1.0)
    figures = dict(scalars(result))
    assert figures["endless_well_formed"] == figures["endless_well_formed_easy"] == result["endless_well_formed"]


def test_without_endless_texts_there_is_no_figure_of_their_form(tmp_path):
    example = Example((Message(Role.USER, QUESTION), Message(Role.ASSISTANT, "6", "f=3+1=4\ng=4+2=6")), "one", "6")
    result, _ = run(tmp_path, [example], ("f=3+1=4\ng=4+2=6</>6", True))
    assert (result["endless_in_form"], result["endless_well_formed"], result["endless_rechecks"]) == (0.0, None, None)
    assert not {"endless_well_formed", "endless_rechecks"} & set(dict(scalars(result)))


def test_a_budget_beyond_the_models_positions_is_refused_before_anything_is_written(tmp_path):
    example = Example((Message(Role.USER, "f=3+1"), Message(Role.ASSISTANT, "2", "f=3+1=0")), "one", "2")
    writer = FixedWriter(("2", True))
    writer.generation = SimpleNamespace(max_new_tokens=512)
    model = SimpleNamespace(writer=writer, template=ChatTemplate(RoleTokens(), TOKENIZER))
    with pytest.raises(UserError, match="max_new_tokens is 512, but the longest problem leaves"):
        ChainedArithmetic({"easy": [example]}).check(model)

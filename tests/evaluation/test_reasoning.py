"""Chained arithmetic is judged by its answer, and an answer is what stands behind the thought."""

import json
from types import SimpleNamespace

import pytest

from lit_illada.data.sft.chat_template import ChatTemplate, Message, Role
from lit_illada.data.sft.config import RoleTokens
from lit_illada.data.sft.instruction import Example
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.evaluation.reasoning import solve
from lit_illada.evaluation.writer import Writer, Written
from lit_illada.generation.canvas import RowEvents
from lit_illada.generation.trace import Trace

TOKENIZER = Tokenizer.train(["f=3+1=0 and g=0+2=0"], 300)


class Writes:
    """A writer of one given text, of which </> closes the thought."""

    about = Writer.about
    tokenizer = TOKENIZER
    generation = SimpleNamespace(max_new_tokens=64)
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=512))

    def __init__(self, text, is_stopped):
        self.text, self.is_stopped = text, is_stopped

    def write(self, prompts, is_traced):
        thought, is_closed, answer = self.text.partition("</>")
        close = [TOKENIZER.think_close_token_id] if is_closed else []
        ids = [*TOKENIZER.encode(thought), *close, *TOKENIZER.encode(answer)]
        places, sure = list(range(len(ids))), [1.0] * len(ids)
        trace = Trace(ids, [0] * len(ids), places, sure, sure, [1] * len(ids))
        for _ in prompts:
            yield Written(ids, self.is_stopped, RowEvents(), 1.0, trace)


@pytest.mark.parametrize(
    ("text", "is_stopped", "reasoning", "verdict"),
    [
        ("f=3+1=0\ng=0+2=2", False, "f=3+1=0", False),  # cut off: its last digit is no answer
        ("f=3+1=0\ng=0+2=2", True, "f=3+1=0", True),
        ("f=3+1=0</>2", False, "f=3+1=0", True),
        ("it is 2", False, "", True),  # data without thoughts
        ("it is 3", True, "f=3+1=0", False),
    ],
)
def test_what_neither_closes_its_thought_nor_stops_is_not_right(tmp_path, text, is_stopped, reasoning, verdict):
    example = Example((Message(Role.USER, "f=3+1"), Message(Role.ASSISTANT, "2", reasoning)), "one", "2")
    file, template = tmp_path / "rows.jsonl", ChatTemplate(RoleTokens(), TOKENIZER)
    found = solve(
        {"easy": [example]}, Writes(text, is_stopped), template, file, lambda _name, _size: lambda _done: None
    )
    assert json.loads(file.read_text(encoding="utf-8"))["is_right"] is verdict
    assert found["num_correct"] == verdict

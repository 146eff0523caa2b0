"""Chained arithmetic is judged by the answer that follows the reasoning segment."""

import json
from types import SimpleNamespace

import pytest

from lit_illada.data.sft.chat_template import ChatTemplate, Message, Role
from lit_illada.data.sft.config import RoleTokens
from lit_illada.data.sft.examples import Example
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.evaluation.chained_arithmetic import ChainedArithmetic
from lit_illada.evaluation.writer import Writer, Written
from lit_illada.generation.canvas import RowEvents
from lit_illada.generation.trace import Trace

TOKENIZER = Tokenizer.train(["f=3+1=0 and g=0+2=0"], 300)


class FixedWriter:
    """A writer that always returns one text, in which </> closes the reasoning segment."""

    details = Writer.details
    tokenizer = TOKENIZER
    generation = SimpleNamespace(max_new_tokens=64)
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=512))

    def __init__(self, text, is_stopped):
        self.text, self.is_stopped = text, is_stopped

    def write(self, prompts, is_traced):
        reasoning, is_closed, answer = self.text.partition("</>")
        close = [TOKENIZER.think_close_token_id] if is_closed else []
        ids = [*TOKENIZER.encode(reasoning), *close, *TOKENIZER.encode(answer)]
        places, sure = list(range(len(ids))), [1.0] * len(ids)
        trace = Trace(ids, [0] * len(ids), places, sure, sure, [1] * len(ids))
        for _ in prompts:
            yield Written(ids, self.is_stopped, RowEvents(), 1.0, trace)


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
    model = SimpleNamespace(writer=FixedWriter(text, is_stopped), template=ChatTemplate(RoleTokens(), TOKENIZER))
    evaluation = ChainedArithmetic({"easy": [example]})
    evaluation.check(model)
    result = evaluation.run(model, tmp_path, lambda _name, _size: lambda _done: None)
    assert json.loads((tmp_path / result["items"]).read_text(encoding="utf-8"))["is_right"] is verdict
    assert result["num_correct"] == verdict


def test_a_budget_beyond_the_models_positions_is_refused_before_anything_is_written(tmp_path):
    example = Example((Message(Role.USER, "f=3+1"), Message(Role.ASSISTANT, "2", "f=3+1=0")), "one", "2")
    writer = FixedWriter("2", True)
    writer.generation = SimpleNamespace(max_new_tokens=512)
    model = SimpleNamespace(writer=writer, template=ChatTemplate(RoleTokens(), TOKENIZER))
    with pytest.raises(UserError, match="max_new_tokens is 512, but the longest problem leaves"):
        ChainedArithmetic({"easy": [example]}).check(model)

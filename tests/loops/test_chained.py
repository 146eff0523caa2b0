"""The format check of chained arithmetic accepts every reasoning of the corpus and counts malformed lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.data.sft.config import ReasoningSource
from lit_illada.data.sft.examples import make_examples
from lit_illada.loops.detect.ending import reasoning_segment
from lit_illada.tasks.base import Split
from lit_illada.tasks.chains import MAX_DEPTH, ProblemRange
from lit_illada.tasks.traces import well_formed_fraction

PROMPT = "f=3+1\ng=x-2\nx mod 2?"


RECHECKED = {"recheck_fraction": 0.5, "slip_fraction": 0.5}
RETRIED = {"recheck_fraction": 0.0, "retry_fraction": 0.5}


@given(
    st.integers(0, 10**6), st.integers(1, MAX_DEPTH), st.integers(2, 4), st.integers(1, 2),
    st.sampled_from([RECHECKED, RETRIED]),
)  # fmt: skip
def test_every_trace_of_the_corpus_is_well_formed(seed, depth, operands, digits, fractions):
    source = ReasoningSource(seed=seed, operations="+-*", **fractions)
    difficulty = ProblemRange(moduli=[2, 10], min_depth=1, max_depth=depth, operands=operands, digits=digits)
    for example in make_examples(source, difficulty, Split.TRAIN, 8, 0.1):
        user, assistant = example.messages
        for text in (assistant.reasoning, f"<|think|>{assistant.reasoning}<|/think|>{assistant.content}"):
            assert well_formed_fraction(user.content, reasoning_segment(text)) == 1.0


@pytest.mark.parametrize(
    ("text", "fraction"),
    [
        ("<think>f=3+1=0\ng=0-2=0</think>f=", 1.0),
        ("f=3+1=0\ng=0-", 0.5),
        ("f=3+1\n\n=\nf=3=+1=0\nWait, let me check", 0.0),
        ("f=3+1=0 g=0-2=0", 0.0),
        ("+<|think|>f=3+1=0\ng=0-2=0", 0.5),
        ("<|think|><|/think|>0", None),
        ("", None),
    ],
)
def test_only_complete_lines_are_well_formed(text, fraction):
    assert well_formed_fraction(PROMPT, reasoning_segment(text)) == fraction


@pytest.mark.parametrize("prompt", ["", "What is f=3+1?", "x mod 2?", f"{PROMPT} Think."])
def test_other_problems_have_no_well_formed_fraction(prompt):
    assert well_formed_fraction(prompt, "f=3+1=0") is None

"""Chained-arithmetic problems and their steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.errors import UserError
from lit_illada.tasks.arithmetic import Arithmetic
from lit_illada.tasks.base import Problem as BaseProblem
from lit_illada.tasks.base import Split
from lit_illada.tasks.chains import Chain, ProblemRange, Step


@given(
    st.lists(st.tuples(st.sampled_from("+-*"), st.integers(0, 99)), max_size=5), st.integers(0, 99), st.integers(2, 100)
)
def test_a_step_is_python_arithmetic(rest, first, modulus):
    operations = tuple(op for op, _ in rest)
    step = Step(operations, (first, *(number for _, number in rest)))
    assert step.value(None, modulus) == eval(step.terms(None)) % modulus
    later = Step(operations, tuple(number for _, number in rest))
    assert later.value(first, modulus) == eval(later.terms(str(first))) % modulus


def test_a_problem_reads_as_documented():
    problem = Chain("f", 2, (Step(("+",), (3, 1)), Step(("+",), (2,)), Step(("+",), (1,))))
    assert problem.question == "f=3+1\ng=x+2\nh=x+1\nx mod 2?"
    assert problem.statements() == ["f=3+1", "g=0+2", "h=0+1"]
    assert problem.values() == [0, 0, 1]


@pytest.mark.parametrize(
    "fields",
    [
        {"moduli": [1]},
        {"moduli": []},
        {"min_depth": 0},
        {"min_depth": 5, "max_depth": 4},
        {"max_depth": 24},
        {"operands": 1},
        {"digits": 0},
    ],
)
def test_impossible_ranges_are_rejected(fields):
    with pytest.raises(UserError, match="must"):
        ProblemRange(**fields)


@pytest.mark.parametrize(
    ("completion", "answer", "reason"),
    [
        ("7", "7", None),
        ("a=3+4=7\n7", "7", None),
        ("7.0", "7", None),
        ("17", "17", "expected 7"),
        ("7 or 8", "8", "expected 7"),
        ("-7", "-7", "expected 7"),
        ("10-7", "-7", "expected 7"),
        ("seven", None, "no number"),
        ("", None, "no number"),
        ("9" * 2_000_000, "9" * 2_000_000, "expected 7"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_the_last_number_is_the_answer(completion, answer, reason):
    verdict = Arithmetic().check(BaseProblem("q", "7", 1, "here"), completion)
    assert verdict.answer == answer
    assert verdict.correct == (reason is None)
    assert reason is None or reason in verdict.reason


def test_the_difficulty_is_the_depth():
    for problem in Arithmetic(range=ProblemRange(max_depth=6)).problems(Split.TRAIN, 50):
        assert problem.difficulty == problem.question.count("\n")

"""Judges a text by a reference alone, where no task is at hand.

`judge_exact` serves references of training data, `judge_number` problems with a numeric answer, and `is_correct`
generations of any origin, whose reference is a number, a text that gives one, or a Countdown problem.
"""

import re
from fractions import Fraction
from typing import Any

from lit_illada.tasks.answers import exact_answer, exact_match, final_number, first_number
from lit_illada.tasks.base import Verdict
from lit_illada.tasks.countdown import expression_of, judge, left_sides

_STATED = re.compile(r"=|\bis\b|:")


def judge_exact(completion: str, reference: str) -> Verdict:
    """Whether the last number of a completion is the reference, or the whole text where the reference is no number."""
    answer = exact_answer(completion, reference)
    if answer is None:
        return Verdict.wrong(None, "the completion has no number")
    if not exact_match(completion, reference):
        return Verdict.wrong(answer or None, f"expected {reference}")
    return Verdict.right(answer)


def judge_number(completion: str, reference: Fraction) -> Verdict:
    """Whether the final number of a completion is the reference."""
    number = final_number(completion)
    if number is None:
        return Verdict.wrong(None, "the completion has no number")
    answer = str(number)
    return Verdict.right(answer) if number == reference else Verdict.wrong(answer, f"expected {reference}")


def is_correct(answer: str, reference: Any) -> bool | None:
    r"""Whether an answer is correct; None for a reference of unknown kind.

    reference: a number, a text that gives one, or a Countdown problem [numbers, target]. A Countdown answer is an
    expression that uses each number once and evaluates to the target. It is read from the last \boxed{}, else from
    <answer>, else from the whole text, and only up to an equals sign where there is one.
    """
    if (problem := _countdown(reference)) is not None:
        return judge(expression_of(answer), *problem).correct
    expected = _reference_number(reference)
    return None if expected is None else judge_number(answer, expected).correct


def states_answer(text: str, reference: Any) -> bool | None:
    """Whether the correct answer occurs anywhere in a text, after an equals sign, a colon or "is".

    reference: as for `is_correct`; None for one of unknown kind.
    """
    if (problem := _countdown(reference)) is not None:
        return any(judge(left, *problem).correct for left in left_sides(text))
    expected = _reference_number(reference)
    if expected is None:
        return None
    return any(first_number(text[mark.end() : mark.end() + 40]) == expected for mark in _STATED.finditer(text))


def _countdown(reference: Any) -> tuple[list[int], int] | None:
    """(numbers, target) of a Countdown problem; None for any other reference."""
    if not (isinstance(reference, list) and len(reference) == 2 and isinstance(reference[0], list)):
        return None
    numbers, target = reference
    return (numbers, target) if all(isinstance(number, int) for number in [*numbers, target]) else None


def _reference_number(reference: Any) -> Fraction | None:
    if isinstance(reference, bool) or reference is None:
        return None
    if isinstance(reference, int | float):
        is_finite = reference == reference and abs(reference) != float("inf")
        return Fraction(str(reference)) if is_finite else None
    return final_number(reference) if isinstance(reference, str) else None

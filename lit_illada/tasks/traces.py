"""Reference reasoning of chained arithmetic, with re-checks and retries, and the check of a text's form.

    f=3+1=0                              one line per step, with the value of x inserted
    g=0+2=0
    Wait, let me check again.            in a fraction of the problems, up to three steps are re-checked
    g=0+2=0
    h=0+1=1

A re-check directly follows its own step and a step is stated at most twice, so nothing in the text repeats three times:
a model that loops did not copy the loop from here.

With `retry_fraction` a step is stated until its result is right, each wrong result followed by a re-check:

    g=0+7=4                              every statement is wrong with the same probability, whatever came before,
    Wait, let me check again.            so only a reader who can compute the step knows whether the text goes on
    g=0+7=1
    Wait, let me check again.
    g=0+7=7

No statement occurs twice in such a text.
"""

import re
from collections.abc import Sequence
from typing import Protocol

from lit_illada.errors import UserError, require
from lit_illada.tasks.chains import MAX_DEPTH, Chain, uniforms

RECHECK = "Wait, let me check again."

_MAX_RECHECKS = 3
_MAX_RETRIES = 24
_RECHECKS, _RETRIES = 2, 3  # keys of the random draws; `chains` has another
_QUESTION = re.compile(r"(?:[a-w]=[-+*x\d]+\n)+x mod \d+\?")
_STEP_LINE = re.compile(r"[a-w]=\d+(?:[-+*]\d+)*=\d+")


class Traces(Protocol):
    """The fields of a task or of a source of examples that shape the reasoning."""

    @property
    def operations(self) -> str: ...
    @property
    def recheck_fraction(self) -> float: ...
    @property
    def slip_fraction(self) -> float: ...
    @property
    def min_recheck_depth(self) -> int: ...
    @property
    def retry_fraction(self) -> float: ...
    @property
    def min_retry_number(self) -> int: ...
    @property
    def max_retries(self) -> int: ...


def check_traces(traces: Traces, prefix: str = "") -> None:
    """Raises UserError for a value out of range. prefix: of the field's name in the message, such as `sft_data.`"""
    is_known = bool(traces.operations) and not set(traces.operations) - set("+-*")
    require(is_known, f"{prefix}operations", repr(traces.operations), "made of the characters + - *")
    for name in ("recheck_fraction", "slip_fraction", "retry_fraction"):
        require(0 <= getattr(traces, name) <= 1, prefix + name, getattr(traces, name), "between 0 and 1")
    is_depth = 1 <= traces.min_recheck_depth <= MAX_DEPTH
    require(is_depth, f"{prefix}min_recheck_depth", traces.min_recheck_depth, f"in 1 … {MAX_DEPTH}")
    require(traces.min_retry_number >= 0, f"{prefix}min_retry_number", traces.min_retry_number, "at least 0")
    require(
        1 <= traces.max_retries <= _MAX_RETRIES, f"{prefix}max_retries", traces.max_retries, f"in 1 … {_MAX_RETRIES}"
    )
    if traces.recheck_fraction and traces.retry_fraction:
        raise UserError(
            f"{prefix}recheck_fraction is {traces.recheck_fraction} and {prefix}retry_fraction is "
            f"{traces.retry_fraction}: one of them must be 0"
        )


def draw_reasoning(
    chains: dict[int, Chain],
    *,
    seed: int,
    recheck_fraction: float,
    slip_fraction: float,
    min_recheck_depth: int,
) -> list[list[str]]:
    """The lines of each chain's reasoning.

    Args:
        chains: by index.
        recheck_fraction: fraction of the chains in which one to three steps, at most half, are re-checked.
        slip_fraction: fraction of the re-checks that correct a wrong result.
        min_recheck_depth: chains with fewer steps are never re-checked.
    """
    all_draws = uniforms(list(chains), 2 + 2 * _MAX_RECHECKS, seed, _RECHECKS).tolist()
    lines = []
    for chain, draws in zip(chains.values(), all_draws, strict=True):
        may_recheck = draws[0] < recheck_fraction and len(chain.steps) >= min_recheck_depth
        lines.append(_reasoning(chain, _rechecks(len(chain.steps), draws[1:]) if may_recheck else {}, slip_fraction))
    return lines


def draw_retries(
    chains: dict[int, Chain], *, seed: int, retry_fraction: float, min_retry_number: int, max_retries: int
) -> list[list[str]]:
    """The lines of each chain's reasoning, in which wrong statements are re-checked until the right one.

    Args:
        chains: by index.
        retry_fraction: probability that a statement is wrong, the same for each statement of a step. A step has no
            more wrong statements than there are wrong results.
        min_retry_number: only steps with a number of at least this size have wrong statements.
        max_retries: most wrong statements of a chain.
    """
    all_draws = uniforms(list(chains), MAX_DEPTH + _MAX_RETRIES, seed, _RETRIES).tolist()
    return [
        _retried(chain, draws, retry_fraction, min_retry_number, max_retries)
        for chain, draws in zip(chains.values(), all_draws, strict=True)
    ]


def well_formed_fraction(question: str, reasoning: str) -> float | None:
    """Fraction of the reasoning's lines that are whole steps or re-checks; the last line counts even if cut off.

    None where the question is not chained arithmetic or the reasoning has no line.
    """
    if not _QUESTION.fullmatch(question.strip()):
        return None
    lines = [line.strip() for line in reasoning.splitlines() if line.strip()]
    num_well_formed = sum(line == RECHECK or _STEP_LINE.fullmatch(line) is not None for line in lines)
    return num_well_formed / len(lines) if lines else None


def _rechecks(depth: int, draws: Sequence[float]) -> dict[int, float]:
    """The steps to re-check, each with its draw for a slip. draws: for the number, the steps and the slips."""
    how_many, *choices = draws
    # at most half: otherwise a re-check would be the most common line after a step of a short chain
    num_rechecks = min(1 + int(how_many * _MAX_RECHECKS), depth // 2)
    steps = list(range(depth))
    return {
        steps.pop(int(choice * len(steps))): slip
        for choice, slip in zip(choices[:num_rechecks], choices[_MAX_RECHECKS:], strict=False)
    }


def _reasoning(chain: Chain, rechecks: dict[int, float], slip_fraction: float) -> list[str]:
    lines = []
    for index, (statement, value) in enumerate(zip(chain.statements(), chain.values(), strict=True)):
        if index in rechecks:
            first = _slipped(value, chain.modulus, rechecks[index], slip_fraction)
            lines += [f"{statement}={first}", RECHECK]
        lines.append(f"{statement}={value}")
    return lines


def _retried(chain: Chain, draws: Sequence[float], fraction: float, min_number: int, max_retries: int) -> list[str]:
    draw = iter(draws)
    lines: list[str] = []
    for step, statement, value in zip(chain.steps, chain.statements(), chain.values(), strict=True):
        is_retried = max(step.numbers) >= min_number
        wrong = [result for result in range(chain.modulus) if is_retried and result != value]
        while wrong and lines.count(RECHECK) < max_retries and (drawn := next(draw)) < fraction:
            lines += [f"{statement}={wrong.pop(int(drawn / fraction * len(wrong)))}", RECHECK]
        lines.append(f"{statement}={value}")
    return lines


def _slipped(value: int, modulus: int, draw: float, slip_fraction: float) -> int:
    """A wrong result if the draw lies below the fraction; draws below it are uniform, so they also choose which."""
    if draw >= slip_fraction:
        return value
    return (value + 1 + int(draw / slip_fraction * (modulus - 1))) % modulus

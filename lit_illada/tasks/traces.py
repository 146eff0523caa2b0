"""Reference reasoning of chained arithmetic, with re-checks or retries, and the check of a text's form.

    f=3+1=0                              one line per step, with the value of x inserted
    g=0+2=0
    Wait, let me check again.            with `recheck_fraction`, up to three steps of a trace are re-checked
    g=0+2=0
    h=0+1=1

A re-check directly follows its own step and a step is stated at most twice, so nothing in such a trace repeats three
times: a model that loops did not copy the loop from here.

    g=0+7=4                              with `retry_fraction`, a step is stated until its result is right,
    Wait, let me check again.            each wrong result followed by a re-check
    g=0+7=1
    Wait, let me check again.
    g=0+7=7

With `retry_sentence=false` the wrong results follow each other without the sentence in between. Until `max_retries`
are used up, every statement of a retried step is wrong with the same probability, whatever came before. No statement
occurs twice: such a trace is periodic but for the result, and a loop differs from it in that the result repeats too.
"""

import re
from collections.abc import Sequence
from typing import Protocol

from lit_illada.errors import require
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
    @property
    def retry_sentence(self) -> bool: ...


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
    if traces.retry_fraction:
        unused = {"recheck_fraction": 0, "slip_fraction": 0, "min_recheck_depth": 1}
        for name, value in unused.items():
            seen = f"{getattr(traces, name)} beside {prefix}retry_fraction={traces.retry_fraction}"
            require(getattr(traces, name) == value, prefix + name, seen, f"{value}, since retries replace re-checks")


def draw_traces(chains: dict[int, Chain], traces: Traces, seed: int) -> list[list[str]]:
    """The lines of each chain's reasoning. chains: by index, which with `seed` determines the draws."""
    if traces.retry_fraction:
        all_draws = uniforms(list(chains), MAX_DEPTH + _MAX_RETRIES, seed, _RETRIES).tolist()
        return [_retried(chain, draws, traces) for chain, draws in zip(chains.values(), all_draws, strict=True)]
    all_draws = uniforms(list(chains), 2 + 2 * _MAX_RECHECKS, seed, _RECHECKS).tolist()
    lines = []
    for chain, draws in zip(chains.values(), all_draws, strict=True):
        may_recheck = draws[0] < traces.recheck_fraction and len(chain.steps) >= traces.min_recheck_depth
        rechecks = _rechecks(len(chain.steps), draws[1:]) if may_recheck else {}
        lines.append(_reasoning(chain, rechecks, traces.slip_fraction))
    return lines


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


def _retried(chain: Chain, draws: Sequence[float], traces: Traces) -> list[str]:
    draw, sentence = iter(draws), [RECHECK] if traces.retry_sentence else []
    lines: list[str] = []
    num_wrong = 0
    for step, statement, value in zip(chain.steps, chain.statements(), chain.values(), strict=True):
        is_retried = max(step.numbers) >= traces.min_retry_number
        wrong = [result for result in range(chain.modulus) if is_retried and result != value]
        while wrong and num_wrong < traces.max_retries and (drawn := next(draw)) < traces.retry_fraction:
            lines += [f"{statement}={wrong.pop(int(drawn / traces.retry_fraction * len(wrong)))}", *sentence]
            num_wrong += 1
        lines.append(f"{statement}={value}")
    return lines


def _slipped(value: int, modulus: int, draw: float, slip_fraction: float) -> int:
    """A wrong result if the draw lies below the fraction; draws below it are uniform, so they also choose which."""
    if draw >= slip_fraction:
        return value
    return (value + 1 + int(draw / slip_fraction * (modulus - 1))) % modulus

"""Chained arithmetic modulo a small number: problems with a computed answer, their reasoning and its format check.

    f=3+1                                the question: x is the result of the previous line
    g=x+2
    h=x+1
    x mod 2?
    f=3+1=0                              the reasoning: one line per step, with the value of x inserted
    g=0+2=0
    Wait, let me check again.            in a fraction of the problems, up to three steps are re-checked
    g=0+2=0
    h=0+1=1
    1                                    the answer

A hash of the question assigns a problem to training, validation or test, so that these are disjoint for any ranges. A
re-check directly follows its own step and a step is stated at most twice, so nothing in the text repeats three times:
a model that loops did not copy the loop from here.

Every draw is a function of (seed, index of the problem).
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from string import ascii_lowercase

import numpy as np
from numpy.typing import NDArray

from lit_illada.errors import UserError
from lit_illada.runtime.counter_rng import uniform

RECHECK = "Wait, let me check again."
MAX_DEPTH = 23  # one letter per step, a to w: x is the previous result

_PROBLEM, _REASONING = 1, 2  # keys of the random draws
_CHUNK = 4096  # problems drawn at a time
_LABELS = ascii_lowercase[:MAX_DEPTH]
_MAX_RECHECKS = 3
_QUESTION = re.compile(r"(?:[a-w]=[-+*x\d]+\n)+x mod \d+\?")
_STEP_LINE = re.compile(r"[a-w]=\d+(?:[-+*]\d+)*=\d+")


class Portion(StrEnum):
    """Disjoint parts of all problems."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True)
class ProblemRange:
    """The difficulty of chained-arithmetic problems, each value drawn uniformly from its range.

    A sum modulo 10 of numbers up to 3 is learnt in minutes, one of arbitrary digits is not: in the first, one of the
    two numbers carries information about the sum, in the second it carries none.
    """

    moduli: list[int] = field(default_factory=lambda: [2])
    """Moduli, one of them per problem; a modulus listed twice is drawn twice as often."""
    min_depth: int = 1
    """Steps of the shortest chains."""
    max_depth: int = 4
    """Steps of the longest chains, at most 23."""
    operands: int = 2
    """Numbers that a step combines, the previous result included."""
    digits: int = 1
    """Decimal digits of the largest number."""
    max_numbers: list[int] | None = None
    """Largest numbers, one of them per problem; None: the largest that `digits` allows."""

    @property
    def largest(self) -> list[int]:
        """The largest numbers, from which each problem draws one."""
        return self.max_numbers or [10**self.digits - 1]

    def __post_init__(self) -> None:
        if not self.moduli or min(self.moduli) < 2:
            raise UserError(f"moduli is {self.moduli}; it must name numbers of at least 2")
        if not 1 <= self.min_depth <= self.max_depth <= MAX_DEPTH:
            raise UserError(
                f"min_depth is {self.min_depth} and max_depth {self.max_depth}; they must rise within 1 … {MAX_DEPTH}"
            )
        if not 2 <= self.operands <= 6:
            raise UserError(f"operands is {self.operands}; it must lie in 2 … 6")
        if not 1 <= self.digits <= 6:
            raise UserError(f"digits is {self.digits}; it must lie in 1 … 6")
        if self.max_numbers is not None and not all(1 <= largest < 10**self.digits for largest in self.max_numbers):
            raise UserError(
                f"max_numbers is {self.max_numbers}; each must lie in 1 … {10**self.digits - 1}, as "
                f"digits={self.digits} allows"
            )


@dataclass(frozen=True)
class Step:
    """One step of a chain."""

    operations: tuple[str, ...]  # one before each number; in the first step none before the first number
    numbers: tuple[int, ...]  # combined with the previous result; the first step has one more

    def terms(self, first: str | None) -> str:
        """`first` op number op number …; None starts with the step's first number."""
        numbers = iter(self.numbers)
        text = first if first is not None else str(next(numbers))
        return text + "".join(f"{op}{number}" for op, number in zip(self.operations, numbers, strict=True))

    def value(self, previous: int | None, modulus: int) -> int:
        """The result modulo `modulus`: products before sums, from left to right."""
        numbers = iter(self.numbers)
        total, product = 0, previous if previous is not None else next(numbers)
        for op, number in zip(self.operations, numbers, strict=True):
            if op == "*":
                product *= number
            else:
                total, product = total + product, number if op == "+" else -number
        return (total + product) % modulus


@dataclass(frozen=True)
class Problem:
    """A chain of steps and the modulus of every result."""

    first_label: str  # letter of the first step; drawn, so that long chains have no letter that short ones lack
    modulus: int
    steps: tuple[Step, ...]

    @property
    def question(self) -> str:
        # One line per step, as in the reasoning, and each label once: a model copies a number by finding its label.
        terms = [step.terms("x" if index else None) for index, step in enumerate(self.steps)]
        return "\n".join([*self._labelled(terms), f"x mod {self.modulus}?"])

    @property
    def answer(self) -> str:
        return str(self.values()[-1])

    def values(self) -> list[int]:
        """The result of every step; the last one is the answer."""
        results: list[int] = []
        for step in self.steps:
            results.append(step.value(results[-1] if results else None, self.modulus))
        return results

    def statements(self) -> list[str]:
        """The lines of the reasoning without their results."""
        previous = [None, *map(str, self.values()[:-1])]
        terms = [step.terms(first) for step, first in zip(self.steps, previous, strict=True)]
        return self._labelled(terms)

    def portion(self, held_out_fraction: float) -> Portion:
        """By a hash of the question: this fraction of all problems for validation, the same again for the test."""
        digest = hashlib.blake2b(self.question.encode(), digest_size=8).digest()
        position = int.from_bytes(digest, "big") / 2**64
        if position < held_out_fraction:
            return Portion.VALIDATION
        return Portion.TEST if position < 2 * held_out_fraction else Portion.TRAIN

    def _labelled(self, terms: list[str]) -> list[str]:
        return [f"{chr(ord(self.first_label) + index)}={text}" for index, text in enumerate(terms)]


def draw_problems(
    difficulty: ProblemRange, operations: str, portion: Portion, num: int, *, seed: int, held_out_fraction: float
) -> dict[int, Problem]:
    """The first `num` problems of a range that belong to `portion`, by their index in the endless sequence of the seed.

    Training problems may repeat; held-out problems are distinct. Raises UserError where the range has too few.
    """
    may_repeat = portion is Portion.TRAIN
    chosen: dict[int, Problem] = {}
    seen: set[str] = set()
    for index, problem in _all_problems(difficulty, operations, seed):
        if index > 1000 + 10 * num / held_out_fraction:
            raise UserError(
                f"sft_data.source: only {len(chosen)} of {num} {portion} problems were found among {index}: the range "
                "is too small; raise its depth, operands or digits, or request fewer"
            )
        if problem.portion(held_out_fraction) is not portion or (not may_repeat and problem.question in seen):
            continue
        chosen[index] = problem
        seen.add(problem.question)
        if len(chosen) == num:
            break
    return chosen


def draw_reasoning(
    problems: dict[int, Problem],
    *,
    seed: int,
    recheck_fraction: float,
    slip_fraction: float,
    min_recheck_depth: int,
) -> list[list[str]]:
    """The lines of each problem's reasoning.

    Args:
        problems: by index, as `draw_problems` returns them.
        recheck_fraction: fraction of the problems in which one to three steps, at most half, are re-checked.
        slip_fraction: fraction of the re-checks that correct a wrong result.
        min_recheck_depth: chains with fewer steps are never re-checked.
    """
    all_draws = _uniforms(list(problems), 2 + 2 * _MAX_RECHECKS, seed, _REASONING).tolist()
    lines = []
    for problem, draws in zip(problems.values(), all_draws, strict=True):
        may_recheck = draws[0] < recheck_fraction and len(problem.steps) >= min_recheck_depth
        lines.append(
            _reasoning(problem, _rechecks(len(problem.steps), draws[1:]) if may_recheck else {}, slip_fraction)
        )
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


def _all_problems(difficulty: ProblemRange, operations: str, seed: int) -> Iterator[tuple[int, Problem]]:
    width = 3 + (len(difficulty.largest) > 1) + 2 * difficulty.max_depth * difficulty.operands
    for chunk in count():
        indices = range(chunk * _CHUNK, (chunk + 1) * _CHUNK)
        for index, draws in zip(indices, _uniforms(indices, width, seed, _PROBLEM), strict=True):
            yield index, _problem(draws.tolist(), operations, difficulty)


def _problem(draws: Sequence[float], operations: str, difficulty: ProblemRange) -> Problem:
    draw = iter(draws)

    def below(size: int) -> int:
        return int(next(draw) * size)

    modulus = difficulty.moduli[below(len(difficulty.moduli))]
    depth = difficulty.min_depth + below(difficulty.max_depth - difficulty.min_depth + 1)
    largest = difficulty.largest
    num_numbers = 1 + (largest[0] if len(largest) == 1 else largest[below(len(largest))])
    first_label = _LABELS[below(len(_LABELS) - depth + 1)]
    steps = []
    for index in range(depth):
        num_operations = difficulty.operands - 1
        ops = tuple(operations[below(len(operations))] for _ in range(num_operations))
        numbers = tuple(below(num_numbers) for _ in range(num_operations + (index == 0)))
        steps.append(Step(ops, numbers))
    return Problem(first_label, modulus, tuple(steps))


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


def _reasoning(problem: Problem, rechecks: dict[int, float], slip_fraction: float) -> list[str]:
    lines = []
    for index, (statement, value) in enumerate(zip(problem.statements(), problem.values(), strict=True)):
        if index in rechecks:
            first = _slipped(value, problem.modulus, rechecks[index], slip_fraction)
            lines += [f"{statement}={first}", RECHECK]
        lines.append(f"{statement}={value}")
    return lines


def _slipped(value: int, modulus: int, draw: float, slip_fraction: float) -> int:
    """A wrong result if the draw lies below the fraction; draws below it are uniform, so they also choose which."""
    if draw >= slip_fraction:
        return value
    return (value + 1 + int(draw / slip_fraction * (modulus - 1))) % modulus


def _uniforms(indices: Sequence[int], width: int, *key: int) -> NDArray[np.float64]:
    """(number of indices, width): numbers in [0, 1), a fixed row for each index."""
    counters = np.asarray(indices, np.int64)[:, None] * width + np.arange(width)
    return uniform(counters.reshape(-1), *key).reshape(len(counters), width)

"""Where do reasoning examples come from that need no file? Chained arithmetic modulo a small number, made on the spot.

    f=3+1                                the question: x is the result of the line before
    g=x+2
    h=x+1
    x mod 2?
    f=3+1=0                              the trace: a step a line, the value of x put in
    g=0+2=0
    Wait, let me check again.            with probability ρ one to three steps are re-checked, at most half
    g=0+2=0
    h=0+1=1
    1                                    the answer

A problem belongs to training, validation or test by a hash of its question, so the three never share one, whatever
their ranges. A re-check stands behind its own step and a step is stated at most twice, so nothing in the corpus repeats
three times: a loop in what a model generates was not copied from here.

Every draw is a function of (seed, number of the example).
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from string import ascii_lowercase

import numpy as np
from numpy.typing import NDArray

from lit_illada.data.draws import uniform
from lit_illada.data.sft.chat_template import Message, Role
from lit_illada.data.sft.config import MAX_DEPTH, ProblemRange, ReasoningSource
from lit_illada.data.sft.instruction import Example
from lit_illada.errors import UserError

RECHECK = "Wait, let me check again."

_PROBLEM, _TRACE = 1, 2
_CHUNK = 4096
_ALPHABET = ascii_lowercase[:MAX_DEPTH]  # up to w: x has a meaning of its own
_MAX_RECHECKS = 3


class Portion(StrEnum):
    """Disjoint parts of all problems."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True)
class Step:
    """numbers: what is combined with the result before (the first step has one number more). operations: before each
    number but, in the first step, the first."""

    operations: tuple[str, ...]
    numbers: tuple[int, ...]

    def terms(self, first: str | None) -> str:
        """`first` op number op number …; without `first` the first number begins."""
        numbers = iter(self.numbers)
        text = first if first is not None else str(next(numbers))
        return text + "".join(f"{op}{number}" for op, number in zip(self.operations, numbers, strict=True))

    def value(self, before: int | None, modulus: int) -> int:
        """Products before sums, from left to right."""
        numbers = iter(self.numbers)
        total, product = 0, before if before is not None else next(numbers)
        for op, number in zip(self.operations, numbers, strict=True):
            if op == "*":
                product *= number
            else:
                total, product = total + product, number if op == "+" else -number
        return (total + product) % modulus


@dataclass(frozen=True)
class Problem:
    """first_label: the letter of the first step, of any place in the alphabet, so that a long chain has no letter that
    short ones lack."""

    first_label: str
    modulus: int
    steps: tuple[Step, ...]

    @property
    def question(self) -> str:
        # A line a step, as in the trace, and each label once: so a model copies a number by looking for its label.
        terms = [step.terms("x" if index else None) for index, step in enumerate(self.steps)]
        return "\n".join([*self._labelled(terms), f"x mod {self.modulus}?"])

    def values(self) -> list[int]:
        """The result of every step; the last is the answer."""
        results: list[int] = []
        for step in self.steps:
            results.append(step.value(results[-1] if results else None, self.modulus))
        return results

    def statements(self) -> list[str]:
        """The trace's lines up to their results."""
        before = [None, *map(str, self.values()[:-1])]
        terms = [step.terms(first) for step, first in zip(self.steps, before, strict=True)]
        return self._labelled(terms)

    def portion(self, held_out_fraction: float) -> Portion:
        """By a hash of the question: this share is for validation, as much again for the test."""
        digest = hashlib.blake2b(self.question.encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        if place < held_out_fraction:
            return Portion.VALIDATION
        return Portion.TEST if place < 2 * held_out_fraction else Portion.TRAIN

    def _labelled(self, terms: list[str]) -> list[str]:
        return [f"{chr(ord(self.first_label) + index)}={text}" for index, text in enumerate(terms)]


def make_examples(
    source: ReasoningSource, difficulty: ProblemRange, portion: Portion, num: int, held_out_fraction: float
) -> list[Example]:
    """`num` examples of a range whose problems belong to `portion`.

    In training a small problem may come again; held-out problems are all different. Raises UserError where the range
    holds too few.
    """
    may_repeat = portion is Portion.TRAIN
    found: dict[int, Problem] = {}
    seen: set[str] = set()
    for index, problem in _problems(source, difficulty):
        if index > 1000 + 10 * num / held_out_fraction:
            raise UserError(
                f"sft_data.source: only {len(found)} of {num} {portion} problems were found among {index}: the range "
                "is too small; raise its depth, operands or digits, or ask for fewer"
            )
        if problem.portion(held_out_fraction) is not portion or (not may_repeat and problem.question in seen):
            continue
        found[index] = problem
        seen.add(problem.question)
        if len(found) == num:
            break
    draws = _uniforms(list(found), 2 + 2 * _MAX_RECHECKS, source.seed, _TRACE)
    return [
        _example(problem, source, draws[row], f"{portion} problem {index}")
        for row, (index, problem) in enumerate(found.items())
    ]


def _problems(source: ReasoningSource, difficulty: ProblemRange) -> Iterator[tuple[int, Problem]]:
    width = 3 + (len(difficulty.largest) > 1) + 2 * difficulty.max_depth * difficulty.operands
    for chunk in count():
        indices = range(chunk * _CHUNK, (chunk + 1) * _CHUNK)
        for index, draws in zip(indices, _uniforms(indices, width, source.seed, _PROBLEM), strict=True):
            yield index, _problem(draws.tolist(), source.operations, difficulty)


def _problem(draws: Sequence[float], operations: str, difficulty: ProblemRange) -> Problem:
    draw = iter(draws)

    def below(size: int) -> int:
        return int(next(draw) * size)

    modulus = difficulty.moduli[below(len(difficulty.moduli))]
    depth = difficulty.min_depth + below(difficulty.max_depth - difficulty.min_depth + 1)
    largest = difficulty.largest
    num_numbers = 1 + (largest[0] if len(largest) == 1 else largest[below(len(largest))])
    first_label = _ALPHABET[below(len(_ALPHABET) - depth + 1)]
    steps = []
    for index in range(depth):
        num_operations = difficulty.operands - 1
        ops = tuple(operations[below(len(operations))] for _ in range(num_operations))
        numbers = tuple(below(num_numbers) for _ in range(num_operations + (index == 0)))
        steps.append(Step(ops, numbers))
    return Problem(first_label, modulus, tuple(steps))


def _example(problem: Problem, source: ReasoningSource, draws: NDArray[np.float64], origin: str) -> Example:
    answer = str(problem.values()[-1])
    messages = (
        Message(Role.USER, problem.question),
        Message(Role.ASSISTANT, answer, "\n".join(_trace(problem, source, draws.tolist()))),
    )
    return Example(messages, origin, answer)


def _trace(problem: Problem, source: ReasoningSource, draws: list[float]) -> list[str]:
    happens, how_many, *choices = draws
    rechecked: dict[int, float] = {}  # step: its draw for a slip
    if happens < source.recheck_fraction and len(problem.steps) >= source.min_recheck_depth:
        steps = list(range(len(problem.steps)))
        # never more than half: doubt must not be what a step of a short chain is usually followed by
        num_rechecks = min(1 + int(how_many * _MAX_RECHECKS), len(steps) // 2)
        for where, slip in zip(choices[:num_rechecks], choices[_MAX_RECHECKS:], strict=False):
            rechecked[steps.pop(int(where * len(steps)))] = slip
    lines = []
    for index, (statement, value) in enumerate(zip(problem.statements(), problem.values(), strict=True)):
        if index in rechecked:
            first = _slipped(value, problem.modulus, rechecked[index], source.slip_fraction)
            lines += [f"{statement}={first}", RECHECK]
        lines.append(f"{statement}={value}")
    return lines


def _slipped(value: int, modulus: int, draw: float, slip_fraction: float) -> int:
    """A wrong result where the draw says so: what lies below the fraction is uniform, and chooses it."""
    if draw >= slip_fraction:
        return value
    return (value + 1 + int(draw / slip_fraction * (modulus - 1))) % modulus


def _uniforms(indices: Sequence[int], width: int, *key: int) -> NDArray[np.float64]:
    """(number of indices, width): numbers in [0, 1) that belong to an index."""
    counters = np.asarray(indices, np.int64)[:, None] * width + np.arange(width)
    return uniform(counters.reshape(-1), *key).reshape(len(counters), width)

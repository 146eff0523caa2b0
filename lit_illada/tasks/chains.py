"""Chains of sums modulo a small number: the questions of chained arithmetic and the values of their steps.

    f=3+1                                x is the result of the previous line
    g=x+2
    h=x+1
    x mod 2?

Every draw is a function of (seed, index of the problem).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from string import ascii_lowercase

import numpy as np
from numpy.typing import NDArray

from lit_illada.errors import UserError
from lit_illada.runtime.counter_rng import uniform
from lit_illada.tasks.base import Split, split_of

MAX_DEPTH = 23  # one letter per step, a to w: x is the previous result

_PROBLEM = 1  # key of the random draws; `traces` has others
_CHUNK = 4096  # problems drawn at a time
_LABELS = ascii_lowercase[:MAX_DEPTH]


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
class Chain:
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

    def split(self, held_out_fraction: float) -> Split:
        """The split of the question."""
        return split_of(self.question, held_out_fraction)

    def _labelled(self, terms: list[str]) -> list[str]:
        return [f"{chr(ord(self.first_label) + index)}={text}" for index, text in enumerate(terms)]


def all_chains(difficulty: ProblemRange, operations: str, seed: int) -> Iterator[tuple[int, Chain]]:
    """Endless (index, chain) of a range, in the order of the index."""
    width = 3 + (len(difficulty.largest) > 1) + 2 * difficulty.max_depth * difficulty.operands
    for chunk in count():
        indices = range(chunk * _CHUNK, (chunk + 1) * _CHUNK)
        for index, draws in zip(indices, uniforms(indices, width, seed, _PROBLEM), strict=True):
            yield index, _chain(draws.tolist(), operations, difficulty)


def _chain(draws: Sequence[float], operations: str, difficulty: ProblemRange) -> Chain:
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
    return Chain(first_label, modulus, tuple(steps))


def uniforms(indices: Sequence[int], width: int, *key: int) -> NDArray[np.float64]:
    """(number of indices, width): numbers in [0, 1), a fixed row for each index."""
    counters = np.asarray(indices, np.int64)[:, None] * width + np.arange(width)
    return uniform(counters.reshape(-1), *key).reshape(len(counters), width)

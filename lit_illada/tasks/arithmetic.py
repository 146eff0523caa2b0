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

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from string import ascii_lowercase
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lit_illada.errors import UserError, require
from lit_illada.runtime.counter_rng import uniform
from lit_illada.tasks.base import Problem, Split, Task, Verdict, draw_split, require_num, split_of
from lit_illada.tasks.references import judge_exact

RECHECK = "Wait, let me check again."
MAX_DEPTH = 23  # one letter per step, a to w: x is the previous result

_PROBLEM, _REASONING = 1, 2  # keys of the random draws
_CHUNK = 4096  # problems drawn at a time
_LABELS = ascii_lowercase[:MAX_DEPTH]
_MAX_RECHECKS = 3
_QUESTION = re.compile(r"(?:[a-w]=[-+*x\d]+\n)+x mod \d+\?")
_STEP_LINE = re.compile(r"[a-w]=\d+(?:[-+*]\d+)*=\d+")


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


@dataclass(frozen=True)
class Arithmetic(Task):
    """Chained arithmetic with computed answers; the difficulty is the number of steps."""

    difficulty_name: ClassVar[str] = "depth"

    operations: str = "+"
    """Operations, drawn uniformly from these characters (+ - *)."""
    range: ProblemRange = field(default_factory=ProblemRange)
    """Difficulty of the problems."""
    recheck_fraction: float = 0.0
    """Fraction ρ of reference solutions that re-check one to three steps, at most half of all steps."""
    slip_fraction: float = 0.0
    """Fraction of the re-checks that correct a wrong result."""
    min_recheck_depth: int = 1
    """Chains with fewer steps are never re-checked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_known = bool(self.operations) and not set(self.operations) - set("+-*")
        require(is_known, "operations", repr(self.operations), "made of the characters + - *")
        for name in ("recheck_fraction", "slip_fraction"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        is_depth = 1 <= self.min_recheck_depth <= MAX_DEPTH
        require(is_depth, "min_recheck_depth", self.min_recheck_depth, f"in 1 … {MAX_DEPTH}")

    def problems(self, split: Split, num: int | None = None) -> list[Problem]:
        chains = draw_split(
            _all_chains(self.range, self.operations, self.seed),
            lambda chain: chain.question,
            split,
            require_num(num, self),
            self.held_out_fraction,
            where="chained arithmetic",
            hint="the range is too small; raise its depth, operands or digits, or request fewer",
        )
        solutions = draw_reasoning(
            chains,
            seed=self.seed,
            recheck_fraction=self.recheck_fraction,
            slip_fraction=self.slip_fraction,
            min_recheck_depth=self.min_recheck_depth,
        )
        return [
            Problem(
                question=chain.question,
                reference=chain.answer,
                difficulty=len(chain.steps),
                origin=f"{split} problem {index}",
                solution="\n".join(lines),
                answer=chain.answer,
            )
            for (index, chain), lines in zip(chains.items(), solutions, strict=True)
        ]

    def check(self, problem: Problem, completion: str) -> Verdict:
        return judge_exact(completion, problem.reference)


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
    all_draws = _uniforms(list(chains), 2 + 2 * _MAX_RECHECKS, seed, _REASONING).tolist()
    lines = []
    for chain, draws in zip(chains.values(), all_draws, strict=True):
        may_recheck = draws[0] < recheck_fraction and len(chain.steps) >= min_recheck_depth
        lines.append(_reasoning(chain, _rechecks(len(chain.steps), draws[1:]) if may_recheck else {}, slip_fraction))
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


def _all_chains(difficulty: ProblemRange, operations: str, seed: int) -> Iterator[tuple[int, Chain]]:
    width = 3 + (len(difficulty.largest) > 1) + 2 * difficulty.max_depth * difficulty.operands
    for chunk in count():
        indices = range(chunk * _CHUNK, (chunk + 1) * _CHUNK)
        for index, draws in zip(indices, _uniforms(indices, width, seed, _PROBLEM), strict=True):
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


def _slipped(value: int, modulus: int, draw: float, slip_fraction: float) -> int:
    """A wrong result if the draw lies below the fraction; draws below it are uniform, so they also choose which."""
    if draw >= slip_fraction:
        return value
    return (value + 1 + int(draw / slip_fraction * (modulus - 1))) % modulus


def _uniforms(indices: Sequence[int], width: int, *key: int) -> NDArray[np.float64]:
    """(number of indices, width): numbers in [0, 1), a fixed row for each index."""
    counters = np.asarray(indices, np.int64)[:, None] * width + np.arange(width)
    return uniform(counters.reshape(-1), *key).reshape(len(counters), width)

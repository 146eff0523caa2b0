"""Countdown: an expression that uses each given number once and evaluates to the target (after TinyZero's task).

Expressions are evaluated exactly by a parser of whole numbers, + - * / and parentheses. Powers, names and expressions
of more than 200 characters are refused, so no text can make the checker compute for long.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import ClassVar

import numpy as np

from lit_illada.errors import require
from lit_illada.runtime.counter_rng import uniform
from lit_illada.tasks.answers import marked_answer
from lit_illada.tasks.base import Problem, Split, Task, Verdict, draw_split, require_num
from lit_illada.tasks.expression import evaluate

_WORDING = (
    "Use each number exactly once with + - * / and parentheses to reach the target. "
    "Give the expression between <answer> and </answer>.\n{question}"
)
_CHARACTERS = "0123456789+-*/() "  # of an expression that is searched for in a text
_MAX_CHARACTERS = 200
_PLAIN_OPERATORS = {r"\div": "/", r"\times": "*", r"\cdot": "*", "×": "*", "÷": "/", "−": "-"}
_EQUALS = re.compile(r"=(?=\s*[-0-9. ])")
_CHUNK = 1024  # problems drawn at a time
_DRAWS = 3  # per combination of two numbers: the numbers and the operation
_KEY = 3  # of the random draws


@dataclass(frozen=True)
class Countdown(Task):
    """Numbers to combine to a target; the difficulty is how many numbers there are. Every problem has a solution."""

    difficulty_name: ClassVar[str] = "numbers"

    wording: str = _WORDING
    """Text of the prompt around the question."""
    num_numbers: list[int] = field(default_factory=lambda: [3])
    """How many numbers to combine, one of these per problem, each in 2 … 6."""
    max_number: int = 99
    """Largest number; the smallest is 1."""
    max_target: int = 99
    """Largest target; the smallest is 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_size = bool(self.num_numbers) and all(2 <= size <= 6 for size in self.num_numbers)
        require(is_size, "num_numbers", self.num_numbers, "a list of whole numbers in 2 … 6")
        for name in ("max_number", "max_target"):
            require(2 <= getattr(self, name) <= 10_000, name, getattr(self, name), "in 2 … 10000")

    def problems(self, split: Split, num: int | None = None) -> list[Problem]:
        games = draw_split(
            self._games(),
            _Game.key,
            split,
            require_num(num, self),
            self.held_out_fraction,
            where="countdown",
            hint="raise num_numbers, max_number or max_target, or request fewer",
        )
        return [
            Problem(
                question=f"numbers: {' '.join(map(str, game.numbers))}\ntarget: {game.target}",
                reference=[list(game.numbers), game.target],
                difficulty=len(game.numbers),
                origin=f"{split} problem {index}",
                solution="\n".join(game.steps),
                answer=f"<answer>{game.expression}</answer>",
            )
            for index, game in games.items()
        ]

    def check(self, problem: Problem, completion: str) -> Verdict:
        return judge(expression_of(completion), *problem.reference)

    def _games(self) -> Iterator[tuple[int, "_Game | None"]]:
        """(index, game) of an endless sequence; None where the draws give no target in the range."""
        width = 1 + max(self.num_numbers) * (1 + _DRAWS)
        for chunk in count():
            counters = np.arange(chunk * _CHUNK * width, (chunk + 1) * _CHUNK * width)
            rows = uniform(counters, self.seed, _KEY).reshape(_CHUNK, width).tolist()
            for index, draws in enumerate(rows, chunk * _CHUNK):
                yield index, self._game(draws)

    def _game(self, draws: Sequence[float]) -> "_Game | None":
        draw = iter(draws)

        def below(size: int) -> int:
            return int(next(draw) * size)

        numbers = [1 + below(self.max_number) for _ in range(self.num_numbers[below(len(self.num_numbers))])]
        terms, steps = [(number, str(number)) for number in numbers], []
        while len(terms) > 1:
            pair = sorted((terms.pop(below(len(terms))), terms.pop(below(len(terms)))), key=lambda term: -term[0])
            (a, left), (b, right) = pair
            value, operation = _combined(a, b, "+-*/"[below(4)])
            steps.append(f"{a}{operation}{b}={value}")
            terms.append((value, f"({left}{operation}{right})"))
        target, expression = terms[0]
        return _Game(tuple(numbers), target, expression[1:-1], tuple(steps)) if 1 <= target <= self.max_target else None


@dataclass(frozen=True)
class _Game:
    numbers: tuple[int, ...]
    target: int
    expression: str
    """A solution."""
    steps: tuple[str, ...]
    """The solution, one operation per line."""

    def key(self) -> str:
        """Equal for games that differ in the order of the numbers only."""
        return f"{sorted(self.numbers)} {self.target}"


def judge(expression: str, numbers: Sequence[int], target: int) -> Verdict:
    """Whether the expression uses exactly these numbers and evaluates to the target."""
    if not expression.strip():
        return Verdict.wrong(None, "the completion has no expression")
    if len(expression) > _MAX_CHARACTERS:
        return Verdict.wrong(None, f"the expression has more than {_MAX_CHARACTERS} characters")
    used = sorted(map(int, re.findall(r"\d+", expression)))
    if used != sorted(numbers):
        return Verdict.wrong(expression, f"uses the numbers {_listed(used)}, not {_listed(sorted(numbers))}")
    try:
        value = evaluate(expression)
    except ZeroDivisionError:
        return Verdict.wrong(expression, "divides by 0")
    except ValueError as error:
        return Verdict.wrong(expression, f"not an expression of + - * / and parentheses: {error}")
    return Verdict.right(expression) if value == target else Verdict.wrong(expression, f"is {value}, not {target}")


def expression_of(answer: str) -> str:
    r"""The expression that an answer gives: in the last \boxed{}, else in <answer>, else the whole text.

    Only the left side counts where there is an equals sign.
    """
    marked = marked_answer(answer)
    text = answer if marked is None else marked
    return next(left_sides(text), _with_plain_operators(text)).strip()


def left_sides(text: str) -> Iterator[str]:
    """The possible expressions before each equals sign; of one that is too long, an end that is still too long."""
    text = _with_plain_operators(text)
    for equals in _EQUALS.finditer(text):
        before = text[max(0, equals.start() - _MAX_CHARACTERS - 1) : equals.start()]
        if left := before[len(before.rstrip(_CHARACTERS)) :]:
            yield left


def _with_plain_operators(text: str) -> str:
    for spelling, plain in _PLAIN_OPERATORS.items():
        text = text.replace(spelling, plain)
    return text


def _combined(larger: int, smaller: int, operation: str) -> tuple[int, str]:
    """(value, operation); one whose value is no whole number above 0 is replaced by a sum."""
    quotient = larger // smaller if larger % smaller == 0 else 0
    values = {"+": larger + smaller, "-": larger - smaller, "*": larger * smaller, "/": quotient}
    used = operation if values[operation] > 0 else "+"
    return values[used], used


def _listed(numbers: Sequence[int]) -> str:
    """The first numbers, for a message."""
    shown = ", ".join(str(number)[:20] for number in numbers[:8])
    return (shown + (", …" if len(numbers) > 8 else "")) or "none"

"""A mixture of verifiable tasks, so that one fine-tuning or one alignment trains several of them."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from lit_illada.errors import UserError, require
from lit_illada.schema import choice
from lit_illada.tasks.arithmetic import Arithmetic
from lit_illada.tasks.base import Problem, Split, Task, TooFewProblemsError, Verdict, require_num
from lit_illada.tasks.choices import Choices
from lit_illada.tasks.code import Code
from lit_illada.tasks.countdown import Countdown
from lit_illada.tasks.gsm8k import Gsm8k
from lit_illada.tasks.gym import ReasoningGym
from lit_illada.tasks.math import Math
from lit_illada.tasks.sudoku4 import Sudoku4

SINGLE_TASKS: dict[str, type[Task]] = {
    "arithmetic": Arithmetic,
    "countdown": Countdown,
    "sudoku4": Sudoku4,
    "gsm8k": Gsm8k,
    "math": Math,
    "choices": Choices,
    "code": Code,
    "reasoning_gym": ReasoningGym,
}
"""The tasks that a mixture may have, by name."""


@dataclass(frozen=True)
class Part:
    """A task and how often its problems occur."""

    task: Task = choice(SINGLE_TASKS, "arithmetic")
    """The task; the mixture's held_out_fraction replaces its own, and the mixture's seed is added to its seed."""
    weight: float = 1.0
    """Relative frequency of its problems, above 0."""

    def __post_init__(self) -> None:
        require(0 < self.weight < float("inf"), "parts.weight", self.weight, "above 0")


@dataclass(frozen=True)
class Mixture(Task):
    """Problems of several tasks in fixed proportions; each is worded and checked by its own task.

    The difficulty is the number of the part, from 1.
    """

    difficulty_name: ClassVar[str] = "part"

    parts: list[Part] = field(default_factory=lambda: [Part(), Part(Countdown())])
    """Tasks with their weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.parts), "parts", self.parts, "a list of at least one task")

    def problems(self, split: Split, num: int | None = None) -> list[Problem]:
        """The first problems of the mixture.

        Raises TooFewProblemsError that names the part, and UserError for held-out problems that two parts share.
        """
        parts = self._order(require_num(num, self))
        own = [iter(self._of_part(index, split, parts.count(index))) for index in range(len(self.parts))]
        problems = [next(own[index]) for index in parts]
        questions = [problem.question for problem in problems]
        if split is not Split.TRAIN and len(set(questions)) < len(questions):
            shared = next(question for question in questions if questions.count(question) > 1)
            raise UserError(
                f"two parts of the mixture have the same {split} problem, {shared[:60]!r}: give them disjoint ranges"
            )
        return problems

    def check(self, problem: Problem, completion: str) -> Verdict:
        index, question, reference = problem.reference  # some tasks read the question, without its wording, too
        own = replace(problem, question=question, reference=reference)
        return self.parts[index].task.check(own, completion)

    def _order(self, num: int) -> list[int]:
        """The part of each problem: the one that lacks most of its share, so that every beginning is balanced."""
        total = sum(part.weight for part in self.parts)
        shares = [part.weight / total for part in self.parts]
        counts = [0] * len(shares)
        order = []
        for position in range(1, num + 1):
            index = max(range(len(shares)), key=lambda part: shares[part] * position - counts[part])
            counts[index] += 1
            order.append(index)
        return order

    def _of_part(self, index: int, split: Split, num: int) -> list[Problem]:
        own = self.parts[index].task
        task = replace(own, seed=own.seed + self.seed, held_out_fraction=self.held_out_fraction)
        try:
            problems = task.problems(split, num) if num else []
        except TooFewProblemsError as error:
            raise TooFewProblemsError(f"part {index + 1} of the mixture: {error}") from error
        return [
            replace(
                problem,
                question=task.prompt(problem),
                reference=[index, problem.question, problem.reference],
                difficulty=float(index + 1),
                origin=f"part {index + 1}, {problem.origin}",
            )
            for problem in problems
        ]

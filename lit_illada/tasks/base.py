"""Interface of the verifiable tasks: problems, their wording, and a checker that returns a verdict."""

import hashlib
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import Any, ClassVar, TypeVar

from lit_illada.errors import UserError, require


class TooFewProblemsError(UserError):
    """A split has fewer problems than requested.

    num_found: how many it has; 0: unknown.
    """

    def __init__(self, message: str, num_found: int = 0) -> None:
        super().__init__(message)
        self.num_found = num_found


class Split(StrEnum):
    """Disjoint parts of the problems of a task."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True)
class Problem:
    """A question with an answer that can be checked."""

    question: str
    """Question without the task's wording; `Task.prompt` adds it."""
    reference: Any
    """What the checker compares with, as JSON data."""
    difficulty: float
    """Difficulty in the unit that `Task.difficulty_name` names."""
    origin: str
    """Where the problem comes from, for messages: `file:line`, or split and index."""
    solution: str = ""
    """Reference reasoning, without the answer; empty: none is known."""
    answer: str = ""
    """A correct answer as a text that the checker accepts; empty: none is known."""


@dataclass(frozen=True)
class Verdict:
    """Judgement of one completion."""

    correct: bool
    """Whether the completion solves the problem."""
    answer: str | None
    """The answer that was read in the completion; None: there is none."""
    reason: str | None = None
    """Why the completion is wrong, in one line; None for a correct one."""
    score: float = 0.0
    """Partial credit between 0 and 1, as the task defines it; 1 for a correct completion."""

    @classmethod
    def right(cls, answer: str) -> "Verdict":
        """A correct completion."""
        return cls(True, answer, None, 1.0)

    @classmethod
    def wrong(cls, answer: str | None, reason: str, score: float = 0.0) -> "Verdict":
        """A wrong completion."""
        return cls(False, answer, reason, score)


@dataclass(frozen=True)
class Task(ABC):
    """Problems with answers that can be checked. The fields of a subclass are its settings.

    A subclass must hold these laws: the splits are disjoint for all settings but `held_out_fraction`; the first
    problems of a split do not depend on how many are requested; equal settings give equal problems, on every machine;
    `check` returns for every text, in a time proportional to its length, and raises nothing.
    """

    difficulty_name: ClassVar[str] = "difficulty"
    """Name and unit of `Problem.difficulty`, such as "depth"."""

    seed: int = 0
    """Seed of generated problems; the splits do not depend on it."""
    held_out_fraction: float = 0.1
    """Fraction of the problems in the validation split, and again in the test split."""
    wording: str = "{question}"
    """Text of the prompt around the question."""

    def __post_init__(self) -> None:
        is_fraction = 0 < self.held_out_fraction < 0.5
        require(is_fraction, "held_out_fraction", self.held_out_fraction, "between 0 and 0.5")
        require(self.wording.count("{question}") == 1, "wording", repr(self.wording), "a text with {question} once")

    @abstractmethod
    def problems(self, split: Split, num: int | None = None) -> list[Problem]:
        """The first `num` problems of a split; None: all of them, for tasks that are read from files.

        Training problems of a generated task may repeat, held-out problems are distinct. Raises TooFewProblemsError
        where the split has fewer.
        """

    @abstractmethod
    def check(self, problem: Problem, completion: str) -> Verdict:
        """Judges a completion: the text that follows the prompt, without a reasoning segment and end tokens.

        Whether an unfinished completion may count is decided by the caller.
        """

    def prompt(self, problem: Problem) -> str:
        """The prompt of a problem: its question in the task's wording."""
        return self.wording.replace("{question}", problem.question)


T = TypeVar("T")


def split_of(key: str, held_out_fraction: float) -> Split:
    """The split of everything with this key, by a hash: a fraction for validation, the same again for the test."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    if position < held_out_fraction:
        return Split.VALIDATION
    return Split.TEST if position < 2 * held_out_fraction else Split.TRAIN


def draw_split(
    candidates: Iterator[tuple[int, T | None]],
    key: Callable[[T], str],
    split: Split,
    num: int,
    held_out_fraction: float,
    *,
    where: str,
    hint: str,
    distinct_by: Callable[[T], str] | None = None,
) -> dict[int, T]:
    """The first `num` candidates of a split, by index. Held-out ones are distinct.

    Args:
        candidates: (index, candidate) of an endless sequence; None: the index has none.
        key: text whose hash determines the split.
        where, hint: beginning and end of the error message.
        distinct_by: text in which held-out candidates differ; None: their keys.

    Raises TooFewProblemsError where too few of the split occur in the sequence.
    """
    may_repeat = split == Split.TRAIN
    chosen: dict[int, T] = {}
    seen: set[str] = set()
    if num < 1:
        return chosen
    for index, candidate in candidates:
        if index > 1000 + 10 * num / held_out_fraction:
            raise TooFewProblemsError(
                f"{where}: only {len(chosen)} of {num} {split} problems were found among {index}: {hint}", len(chosen)
            )
        if candidate is None or split_of(text := key(candidate), held_out_fraction) != split:
            continue
        if not may_repeat:
            text = distinct_by(candidate) if distinct_by is not None else text
            if text in seen:
                continue
            seen.add(text)
        chosen[index] = candidate
        if len(chosen) == num:
            break
    return chosen


def requested(task: Task, split: Split, key: str, num: int | None, default: int | None = None) -> list[Problem]:
    """The first `num` problems of a split, `default` for None.

    key: the config key of `num`. Raises TooFewProblemsError that names it.
    """
    try:
        if problems := task.problems(split, default if num is None else num):
            return problems
        raise TooFewProblemsError(f"task {type(task).__name__}: no {split} problems")
    except TooFewProblemsError as error:
        number = num if num is not None else "null" if default is None else f"null, which requests {default}"
        raise TooFewProblemsError(f"{error}; {key} is {number}") from error


def judged(task: Task, problem: Problem, completion: str) -> Verdict:
    """The verdict of `Task.check`. Raises UserError where the check of a user's task raises or returns something else.

    The message names the task, the problem, the exception and its line.
    """
    where = f"task {type(task).__name__}, {problem.origin}"
    try:
        verdict = task.check(problem, completion)
    except UserError:
        raise
    except Exception as error:  # a user's check may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        line = f"{PurePath(frame.filename).name}:{frame.lineno}"
        raise UserError(f"{where}: its check raises {reason} ({line}); a check must return for every text") from error
    if not isinstance(verdict, Verdict):
        raise UserError(f"{where}: its check returns a {type(verdict).__name__}; it must return a Verdict")
    return verdict


def require_num(num: int | None, task: Task) -> int:
    """The number of problems of a generated task. Raises UserError for None, since the sequence is endless."""
    if num is None:
        raise UserError(f"{type(task).__name__} generates problems without end; request a number of them")
    return num

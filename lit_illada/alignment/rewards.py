"""Rewards of completions: a weighted list of terms. No torch.

    terms = [RewardTerm(), RewardTerm(Loop(), weight=0.5)]
    total = Σ weight · term(completion)

Terms that penalise return 0 or less, so weights are positive. To add a term, write a frozen dataclass and a row in
`TERMS`. `reward_worker.py` computes the terms under a time limit.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from lit_illada.errors import UserError, require
from lit_illada.loops.config import LoopConfig
from lit_illada.runtime.lazy import LazyModule
from lit_illada.schema import choice, choice_name

findings = LazyModule("lit_illada.loops.detect.findings")  # its imports would slow down every command


class Judged(Protocol):
    """The part of a task's verdict that rewards read."""

    @property
    def correct(self) -> bool: ...
    @property
    def score(self) -> float: ...


@dataclass(frozen=True)
class Answered:
    """A completion as rewards see it."""

    problem: Any
    """The problem, as the task's check takes it."""
    text: str
    """The completion without special tokens, reasoning included."""
    answer: str
    """The part of the text that is checked: without the reasoning segment."""
    token_ids: Sequence[int]
    """Tokens before the first stop token."""
    is_finished: bool
    """Whether the model ended the completion with a stop token."""
    max_new_tokens: int
    """Tokens that the model could write."""
    tokens: Sequence[str] | None = None
    """Text of each token, for the loop detector; None: it compares the ids."""


Check = Callable[[Any, str], Judged]
"""(problem, completion) -> verdict: the `check` of a task."""


@dataclass(frozen=True)
class Term(ABC):
    """A reward."""

    @abstractmethod
    def __call__(self, answered: Answered, check: Check) -> float:
        """A finite number."""


@dataclass(frozen=True)
class Correct(Term):
    """1 for a correct completion, else 0, by the task's check."""

    partial: bool = False
    """Use the verdict's partial credit instead, between 0 and 1."""
    unfinished: float = 0.0
    """Factor for completions that the model has not ended: 0 gives them nothing, 1 treats them like the others."""

    def __post_init__(self) -> None:
        require(0 <= self.unfinished <= 1, "alignment.reward.term.unfinished", self.unfinished, "between 0 and 1")

    def __call__(self, answered: Answered, check: Check) -> float:
        verdict = check(answered.problem, answered.answer)
        value = verdict.score if self.partial else float(verdict.correct)
        return value if answered.is_finished else value * self.unfinished


@dataclass(frozen=True)
class Format(Term):
    """1 where a regular expression occurs in the text, else 0; `.` matches newlines too."""

    pattern: str = r"<answer>.*</answer>"
    """Regular expression; write ^ and $ to match the whole text."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(
                f"alignment.reward.term.pattern is {self.pattern!r}: it is not a valid regular expression ({error})"
            ) from error

    def __call__(self, answered: Answered, check: Check) -> float:
        return float(re.search(self.pattern, answered.text, re.DOTALL) is not None)


@dataclass(frozen=True)
class Length(Term):
    """0 up to `free` tokens, then falling linearly to −1 at the longest completion. DAPO, arXiv 2503.14476, eq. 13."""

    free: float = 0.75
    """Fraction of the longest completion that costs nothing."""

    def __post_init__(self) -> None:
        require(0 <= self.free < 1, "alignment.reward.term.free", self.free, "0 ≤ free < 1")

    def __call__(self, answered: Answered, check: Check) -> float:
        fraction = len(answered.token_ids) / answered.max_new_tokens
        return -min(max((fraction - self.free) / (1 - self.free), 0.0), 1.0)


@dataclass(frozen=True)
class Finished(Term):
    """−1 for a completion that the model has not ended, else 0."""

    def __call__(self, answered: Answered, check: Check) -> float:
        return 0.0 if answered.is_finished else -1.0


@dataclass(frozen=True)
class NgramRepetition(Term):
    """−(1 − distinct n-grams / n-grams) of the words, 0 for fewer words than n. After arXiv 2502.03373, app. C.2."""

    n: int = 3
    """Words of an n-gram."""

    def __post_init__(self) -> None:
        require(self.n >= 1, "alignment.reward.term.n", self.n, "1 or more")

    def __call__(self, answered: Answered, check: Check) -> float:
        words = answered.text.lower().split()
        ngrams = [tuple(words[start : start + self.n]) for start in range(len(words) - self.n + 1)]
        return len(set(ngrams)) / len(ngrams) - 1.0 if ngrams else 0.0


@dataclass(frozen=True)
class Loop(Term):
    """−1 where the loop detector finds a loop, else 0."""

    coverage: bool = False
    """Use minus the fraction of the text that is copies instead."""

    def __call__(self, answered: Answered, check: Check) -> float:
        known = findings.Known(is_finished=answered.is_finished, num_canvas=answered.max_new_tokens)
        loops = findings.detect_tokens(list(answered.token_ids), answered.tokens, LoopConfig(), known)
        return -loops.coverage if self.coverage else -float(loops.is_loop)


TERMS: dict[str, type[Term]] = {
    "correct": Correct,
    "format": Format,
    "length": Length,
    "finished": Finished,
    "ngram_repetition": NgramRepetition,
    "loop": Loop,
}


@dataclass(frozen=True)
class RewardTerm:
    """A term and its weight."""

    term: Term = choice(TERMS, "correct")
    """What is rewarded."""
    weight: float = 1.0
    """Factor on the term; 0: logged only."""

    def __post_init__(self) -> None:
        allowed = "0 or more: terms that penalise return 0 or less themselves"
        require(self.weight >= 0, "alignment.reward.terms.weight", self.weight, allowed)


class OnFailure(StrEnum):
    """Response to a term that raises an error, exceeds its time limit or gives no finite number."""

    ZERO = "zero"  # the term counts 0 for this completion, and the failure is counted
    STOP = "stop"  # the run stops


@dataclass(frozen=True)
class RewardConfig:
    """Rewards of completions."""

    terms: list[RewardTerm] = field(default_factory=lambda: [RewardTerm()])
    """Terms, whose weighted sum is the reward."""
    time_limit_s: float = 30.0
    """Time per term and completion, seconds."""
    on_failure: OnFailure = OnFailure.ZERO
    """Response to a failing term."""

    def __post_init__(self) -> None:
        require(bool(self.terms), "alignment.reward.terms", self.terms, "a list of at least one term")
        weights = [each.weight for each in self.terms]
        require(any(weights), "alignment.reward.terms.weight", weights, "above 0 for at least one term")
        require(self.time_limit_s > 0, "alignment.reward.time_limit_s", self.time_limit_s, "above 0")

    @property
    def names(self) -> list[str]:
        """A name per term: that of its class, numbered from the second on."""
        seen: Counter[str] = Counter()
        names = []
        for each in self.terms:
            name = choice_name(TERMS, each.term).rpartition(":")[2]  # a user's class is file.py:Class
            seen[name] += 1
            names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
        return names

    @property
    def correct_name(self) -> str | None:
        """Name of the first term `correct` that counts; None: there is none."""
        named = zip(self.names, self.terms, strict=True)
        return next((name for name, each in named if isinstance(each.term, Correct) and each.weight), None)

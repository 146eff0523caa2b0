"""Learning-rate schedules, as factors of the optimizer's learning rate; `training/schedule.py` applies them."""

import math
from dataclasses import dataclass
from enum import StrEnum

from lit_illada.errors import UserError


class DecayShape(StrEnum):
    linear = "linear"
    cosine = "cosine"

    def factor(self, progress: float, final_factor: float) -> float:
        """From 1 at progress 0 to `final_factor` at progress 1."""
        progress = min(1.0, max(0.0, progress))
        left = 1 - progress if self is DecayShape.linear else 0.5 * (1 + math.cos(math.pi * progress))
        return final_factor + (1 - final_factor) * left


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then cosine over all the rest of the run."""

    warmup_steps: int = 100
    final_factor: float = 0.1

    def __post_init__(self) -> None:
        _check(self)

    def decay_starts_at(self, max_steps: int) -> int:
        return self.warmup_steps

    def decay_factor(self, steps: int, starts_at: int, max_steps: int) -> float:
        return DecayShape.cosine.factor(steps / max(1, max_steps - starts_at), self.final_factor)


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warm-up, constant, then a decay over the last `decay_fraction` of the run (WSD, arXiv 2404.06395)."""

    warmup_steps: int = 100
    decay_fraction: float = 0.2
    decay_shape: DecayShape = DecayShape.linear
    final_factor: float = 0.1

    def __post_init__(self) -> None:
        _check(self)

    def decay_starts_at(self, max_steps: int) -> int:
        return max(self.warmup_steps, max_steps - round(self.decay_fraction * max_steps))

    def decay_factor(self, steps: int, starts_at: int, max_steps: int) -> float:
        return self.decay_shape.factor(steps / max(1, max_steps - starts_at), self.final_factor)


@dataclass(frozen=True)
class Reactive:
    """iLLaDA's: linear warm-up, constant until the loss stops improving, then cosine (arXiv 2606.25331).

    The rule: the plateau is seen when `patience` validations in a row have not brought `val/nll_bound` below the best
    so far by at least `min_improvement` nats a token. The decay then takes `decay_fraction` of the run; it starts at
    the latest where it still fits before the end.
    """

    warmup_steps: int = 100
    patience: int = 3
    min_improvement: float = 0.01
    decay_fraction: float = 0.2
    final_factor: float = 0.025

    def __post_init__(self) -> None:
        _check(self)
        _require(self.patience >= 1, "patience", self.patience, "be 1 validation or more")
        _require(0 <= self.min_improvement < math.inf, "min_improvement", self.min_improvement, "be 0 or more")

    def decay_starts_at(self, max_steps: int) -> int:
        return max(self.warmup_steps, max_steps - round(self.decay_fraction * max_steps))

    def decay_factor(self, steps: int, starts_at: int, max_steps: int) -> float:
        return DecayShape.cosine.factor(steps / max(1, round(self.decay_fraction * max_steps)), self.final_factor)


Schedule = Cosine | WarmupStableDecay | Reactive


SCHEDULES: dict[str, type] = {"cosine": Cosine, "wsd": WarmupStableDecay, "reactive": Reactive}


def _check(schedule: Cosine | WarmupStableDecay | Reactive) -> None:
    _require(schedule.warmup_steps >= 0, "warmup_steps", schedule.warmup_steps, "be 0 or more")
    _require(0 <= schedule.final_factor <= 1, "final_factor", schedule.final_factor, "lie in [0, 1]")
    if not isinstance(schedule, Cosine):  # which decays over all the rest
        _require(0 < schedule.decay_fraction <= 1, "decay_fraction", schedule.decay_fraction, "lie in (0, 1]")


def _require(is_valid: bool, field: str, seen: float, allowed: str) -> None:
    if not is_valid:
        raise UserError(f"optim.schedule.{field} must {allowed}; got {seen}")

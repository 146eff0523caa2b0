"""How the learning rate moves over a run, as a factor of the optimizer's own."""

import logging
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_illada.errors import UserError

log = logging.getLogger(__name__)


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


class LearningRate(LRScheduler):
    """Applies a schedule to every parameter group, step by step; its state, the plateau's too, is plain numbers."""

    def __init__(self, optimizer: Optimizer, schedule: Schedule, max_steps: int) -> None:
        self.schedule = schedule
        self.max_steps = max_steps
        self.plateau_at: int | None = None
        self.best_nll = math.inf
        self.validations_without_improvement = 0
        self._options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """The factor at a step: warm-up, then 1, then the decay."""
        if step < self.schedule.warmup_steps:
            return (step + 1) / self.schedule.warmup_steps
        starts_at = self.schedule.decay_starts_at(self.max_steps)
        if self.plateau_at is not None:
            starts_at = min(starts_at, self.plateau_at)
        if step < starts_at:
            return 1.0
        return self.schedule.decay_factor(step - starts_at, starts_at, self.max_steps)

    def get_lr(self) -> list[Any]:
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]

    def observe(self, nll: float) -> bool:
        """Tell it a validation's bound, nats a token. Returns whether this very one shows the plateau."""
        if not isinstance(self.schedule, Reactive) or self.plateau_at is not None:
            return False
        if self.last_epoch < self.schedule.warmup_steps:
            return False
        if not math.isfinite(nll):
            log.warning("learning rate: the validation's bound is %s, which tells of no plateau: left out", nll)
            return False
        if nll <= self.best_nll - self.schedule.min_improvement:
            self.best_nll, self.validations_without_improvement = nll, 0
            return False
        self.validations_without_improvement += 1
        if self.validations_without_improvement < self.schedule.patience:
            return False
        self.plateau_at = self.last_epoch
        log.info(
            "learning rate: no validation of the last %d was %g nats below the best, %.4f; the decay starts at step %d",
            self.schedule.patience,
            self.schedule.min_improvement,
            self.best_nll,
            self.plateau_at,
        )
        return True

    def state_dict(self) -> dict[str, Any]:
        names = ("last_epoch", "plateau_at", "best_nll", "validations_without_improvement")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the position only. Rates, decays and the like stay the config's, so that a run can go on with others
        than those its checkpoint was written under; the optimizer's state must be loaded before.
        """
        self.__dict__.update(state_dict)
        for group, options, base in zip(self.optimizer.param_groups, self._options, self.base_lrs, strict=True):
            group.update(options, initial_lr=base, lr=base * self.factor(self.last_epoch))
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def _check(schedule: Cosine | WarmupStableDecay | Reactive) -> None:
    _require(schedule.warmup_steps >= 0, "warmup_steps", schedule.warmup_steps, "be 0 or more")
    _require(0 <= schedule.final_factor <= 1, "final_factor", schedule.final_factor, "lie in [0, 1]")
    if not isinstance(schedule, Cosine):  # which decays over all the rest
        _require(0 < schedule.decay_fraction <= 1, "decay_fraction", schedule.decay_fraction, "lie in (0, 1]")


def _require(is_valid: bool, field: str, seen: float, allowed: str) -> None:
    if not is_valid:
        raise UserError(f"optim.schedule.{field} must {allowed}; got {seen}")

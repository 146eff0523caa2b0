"""Learning-rate schedules, as factors of the optimizer's learning rate; `training/schedule.py` applies them."""

import math
from dataclasses import dataclass
from enum import StrEnum

from lit_illada.errors import require


class DecayShape(StrEnum):
    """Shape of the learning rate's decay."""

    linear = "linear"
    """A straight line."""
    cosine = "cosine"
    """Half a period of a cosine."""

    def factor(self, progress: float, final_factor: float) -> float:
        """The decay at `progress` in [0, 1]: from 1 at 0 to `final_factor` at 1."""
        progress = min(1.0, max(0.0, progress))
        left = 1 - progress if self is DecayShape.linear else 0.5 * (1 + math.cos(math.pi * progress))
        return final_factor + (1 - final_factor) * left


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then cosine decay over the rest of the run."""

    warmup_steps: int = 100
    """Optimizer steps over which the rate rises linearly from 0 to its peak."""
    final_factor: float = 0.1
    """Factor of the peak learning rate at the end of the decay."""

    def __post_init__(self) -> None:
        _check(self)

    def decay_starts_at(self, max_steps: int) -> int:
        """Return the step at which the decay starts."""
        return self.warmup_steps

    def decay_factor(self, steps: int, starts_at: int, max_steps: int) -> float:
        """Return the factor `steps` steps after the start of the decay."""
        return DecayShape.cosine.factor(steps / max(1, max_steps - starts_at), self.final_factor)


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warm-up, constant, then decay over the last `decay_fraction` of the run (WSD, arXiv 2404.06395)."""

    warmup_steps: int = 100
    """Optimizer steps over which the rate rises linearly from 0 to its peak."""
    decay_fraction: float = 0.2
    """Length of the decay, as a fraction of trainer.max_steps."""
    decay_shape: DecayShape = DecayShape.linear
    """Shape of the decay."""
    final_factor: float = 0.1
    """Factor of the peak learning rate at the end of the decay."""

    def __post_init__(self) -> None:
        _check(self)

    def decay_starts_at(self, max_steps: int) -> int:
        return max(self.warmup_steps, max_steps - round(self.decay_fraction * max_steps))

    def decay_factor(self, steps: int, starts_at: int, max_steps: int) -> float:
        return self.decay_shape.factor(steps / max(1, max_steps - starts_at), self.final_factor)


@dataclass(frozen=True)
class Reactive:
    """Linear warm-up, constant until the validation loss stops improving, then cosine (iLLaDA, arXiv 2606.25331).

    A plateau is reached when `patience` consecutive validations have not lowered `val/nll_bound`, or in alignment
    `val/error`, below its minimum so far by at least `min_improvement`. The decay then takes `decay_fraction` of the
    run. Without a plateau it starts in time to finish at the end of the run.
    """

    warmup_steps: int = 100
    """Optimizer steps over which the rate rises linearly from 0 to its peak."""
    patience: int = 3
    """Consecutive validations without improvement that define a plateau."""
    min_improvement: float = 0.01
    """Smallest decrease that counts as an improvement, of val/nll_bound in nats/token or in alignment of val/error."""
    decay_fraction: float = 0.2
    """Length of the decay, as a fraction of trainer.max_steps."""
    final_factor: float = 0.025
    """Factor of the peak learning rate at the end of the decay."""

    def __post_init__(self) -> None:
        _check(self)
        require(self.patience >= 1, "optim.schedule.patience", self.patience, "1 validation or more")
        require(
            0 <= self.min_improvement < math.inf, "optim.schedule.min_improvement", self.min_improvement, "0 or more"
        )

    def decay_starts_at(self, max_steps: int) -> int:
        return max(self.warmup_steps, max_steps - round(self.decay_fraction * max_steps))

    def decay_factor(self, steps: int, starts_at: int, max_steps: int) -> float:
        return DecayShape.cosine.factor(steps / max(1, round(self.decay_fraction * max_steps)), self.final_factor)


Schedule = Cosine | WarmupStableDecay | Reactive


SCHEDULES: dict[str, type] = {"cosine": Cosine, "wsd": WarmupStableDecay, "reactive": Reactive}


def _check(schedule: Cosine | WarmupStableDecay | Reactive) -> None:
    require(schedule.warmup_steps >= 0, "optim.schedule.warmup_steps", schedule.warmup_steps, "0 or more")
    require(0 <= schedule.final_factor <= 1, "optim.schedule.final_factor", schedule.final_factor, "in [0, 1]")
    if not isinstance(schedule, Cosine):  # cosine decays over the whole rest of the run
        require(0 < schedule.decay_fraction <= 1, "optim.schedule.decay_fraction", schedule.decay_fraction, "in (0, 1]")

"""Config of loss spikes and of the response to a divergence; `training/callbacks/divergence.py` implements them."""

import math
from dataclasses import dataclass

from lit_illada.errors import require


@dataclass(frozen=True)
class SpikeConfig:
    """Definition of a loss spike.

    A step is part of a spike if its cross-entropy (nats per masked token, unaffected by the loss weight w(t)) exceeds
    the median of the last `window` steps by more than `threshold` robust standard deviations, 1.4826 × the median
    absolute deviation, and by more than `min_rise`. Steps of a spike stay out of the window. A spike that lasts for a
    whole window counts as the new level.
    """

    window: int = 128
    """Steps over which the median and the deviation are taken; at least 8."""
    threshold: float = 8.0
    """Robust standard deviations above the median beyond which a loss is a spike."""
    min_rise: float = 0.3
    """Smallest rise above the median that counts as a spike, in nats per masked token."""

    def __post_init__(self) -> None:
        require(self.window >= 8, "trainer.spikes.window", self.window, "8 steps or more")
        require(0 < self.threshold < math.inf, "trainer.spikes.threshold", self.threshold, "above 0")
        require(0 <= self.min_rise < math.inf, "trainer.spikes.min_rise", self.min_rise, "0 or more")


@dataclass(frozen=True)
class Stop:
    """Ends the run; the error message names the checkpoint to resume from."""

    max_spike_steps: int | None = None
    """Length of a loss spike, in steps, that counts as a divergence; None: spikes are only counted and logged."""

    def __post_init__(self) -> None:
        _check_spike_steps(self)


@dataclass(frozen=True)
class Rollback:
    """Resumes from the last good checkpoint at a lower learning rate, as LLaDA's authors did by hand when their run
    diverged at 1.2 T tokens (arXiv 2502.09992).

    The rate is lowered in the run's config.yaml, so that every later resume uses it. rollbacks.jsonl of the run folder
    lists the rollbacks.
    """

    max_spike_steps: int | None = 16
    """Length of a loss spike, in steps, that counts as a divergence; None: spikes are only counted and logged."""
    learning_rate_factor: float = 0.5
    """Factor applied to the learning rate at every rollback, in (0, 1]."""
    max_rollbacks: int = 3
    """Rollbacks per run; one more divergence ends the run."""
    steps_back: int = 16
    """Steps by which a checkpoint must precede the first bad step to be good: earlier steps made its bad weights."""
    skip_rows: bool = False
    """Skip the rows between the checkpoint and the divergence (PaLM, arXiv 2204.02311); false: train on them again."""

    def __post_init__(self) -> None:
        _check_spike_steps(self)
        factor = self.learning_rate_factor
        require(0 < factor <= 1, "trainer.on_divergence.learning_rate_factor", factor, "in (0, 1]")
        require(self.max_rollbacks >= 1, "trainer.on_divergence.max_rollbacks", self.max_rollbacks, "1 or more")
        require(self.steps_back >= 2, "trainer.on_divergence.steps_back", self.steps_back, "2 or more")


ON_DIVERGENCE: dict[str, type] = {"stop": Stop, "rollback": Rollback}


def _check_spike_steps(response: Stop | Rollback) -> None:
    steps = response.max_spike_steps
    require(steps is None or steps >= 1, "trainer.on_divergence.max_spike_steps", steps, "1 or more, or null")

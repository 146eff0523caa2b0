"""Configs of what counts as a divergence and of the response to it; `training/divergence.py` implements them."""

import math
from dataclasses import dataclass

from lit_illada.errors import UserError


@dataclass(frozen=True)
class SpikeConfig:
    """What a loss spike is.

    A step's cross-entropy, nats a masked token (which no weight w(t) makes noisy), lies above the median of the last
    `window` steps by more than `threshold` robust standard deviations (1.4826 × median absolute deviation), and by more
    than `min_rise` nats. Steps of a spike do not enter the window, until one has lasted for a whole window: that is a
    new level.
    """

    window: int = 128
    threshold: float = 8.0
    min_rise: float = 0.3

    def __post_init__(self) -> None:
        _require(self.window >= 8, "spikes.window", self.window, "be 8 steps or more")
        _require(0 < self.threshold < math.inf, "spikes.threshold", self.threshold, "be above 0")
        _require(0 <= self.min_rise < math.inf, "spikes.min_rise", self.min_rise, "be 0 or more")


@dataclass(frozen=True)
class Stop:
    """The run ends and says from where to go on.

    max_spike_steps: a loss spike of so many steps is a divergence; None: spikes are told and counted, no more.
    """

    max_spike_steps: int | None = None

    def __post_init__(self) -> None:
        _check_spike_steps(self)


@dataclass(frozen=True)
class Rollback:
    """The run goes on from the last good checkpoint with a lower learning rate, as LLaDA's authors did by hand when
    theirs diverged at 1.2 T tokens (arXiv 2502.09992).

    The rate is lowered in the run's config.yaml, so that every later resume keeps it; rollbacks.jsonl lists what was
    done. learning_rate_factor: what the rate is multiplied with. max_rollbacks: of the run; one more divergence ends
    it. steps_back: a good checkpoint is at least so many steps older than the first step that went wrong, whose weights
    were made by the steps before it. skip_rows: also pass over the rows between that checkpoint and the divergence, as
    PaLM did, where the data is suspected; otherwise the same rows come again.
    """

    max_spike_steps: int | None = 16
    learning_rate_factor: float = 0.5
    max_rollbacks: int = 3
    steps_back: int = 16
    skip_rows: bool = False

    def __post_init__(self) -> None:
        _check_spike_steps(self)
        factor = self.learning_rate_factor
        _require(0 < factor <= 1, "on_divergence.learning_rate_factor", factor, "lie in (0, 1]")
        _require(self.max_rollbacks >= 1, "on_divergence.max_rollbacks", self.max_rollbacks, "be 1 or more")
        _require(self.steps_back >= 2, "on_divergence.steps_back", self.steps_back, "be 2 or more")


ON_DIVERGENCE: dict[str, type] = {"stop": Stop, "rollback": Rollback}


def _check_spike_steps(response: Stop | Rollback) -> None:
    steps = response.max_spike_steps
    _require(steps is None or steps >= 1, "on_divergence.max_spike_steps", steps, "be 1 or more, or null for none")


def _require(is_valid: bool, field: str, seen: object, allowed: str) -> None:
    if not is_valid:
        raise UserError(f"trainer.{field} must {allowed}; got {seen}")

"""Learning-rate scheduler: applies a schedule's factor to the optimizer's learning rates at every step."""

import logging
import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_illada.training.config.schedule import Reactive, Schedule

log = logging.getLogger(__name__)


class LearningRate(LRScheduler):
    """Multiplies each parameter group's learning rate by the schedule's factor.

    The state dict, including the plateau of a Reactive schedule, contains plain numbers only.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, max_steps: int) -> None:
        self.schedule = schedule
        self.max_steps = max_steps
        self.plateau_at: int | None = None
        self.best = math.inf  # lowest value of `RunModule.selected_by` so far
        self.validations_without_improvement = 0
        self._options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """The factor at a step: linear warm-up, then 1, then the decay."""
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

    def observe(self, value: float) -> bool:
        """Update the plateau detection of a Reactive schedule.

        Args:
            value: `RunModule.selected_by` of the validation; a non-finite one is ignored with a warning.

        Returns:
            Whether this validation reaches the plateau, at which the decay starts.
        """
        if not isinstance(self.schedule, Reactive) or self.plateau_at is not None:
            return False
        if self.last_epoch < self.schedule.warmup_steps:
            return False
        if not math.isfinite(value):
            log.warning("learning rate: the validation's metric is %s and is ignored by the plateau detection", value)
            return False
        if value <= self.best - self.schedule.min_improvement:
            self.best, self.validations_without_improvement = value, 0
            return False
        self.validations_without_improvement += 1
        if self.validations_without_improvement < self.schedule.patience:
            return False
        self.plateau_at = self.last_epoch
        log.info(
            "learning rate: none of the last %d validations was %g below the best, %.4f; the decay starts at step %d",
            self.schedule.patience,
            self.schedule.min_improvement,
            self.best,
            self.plateau_at,
        )
        return True

    def state_dict(self) -> dict[str, Any]:
        names = ("last_epoch", "plateau_at", "best", "validations_without_improvement")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position only; learning rate, weight decay and other options remain the config's.

        A run can therefore resume with other options than its checkpoint was written with. Must be called after the
        optimizer's state is loaded.
        """
        # earlier checkpoints name it `best_nll`
        self.__dict__.update({"best" if name == "best_nll" else name: value for name, value in state_dict.items()})
        for group, options, base in zip(self.optimizer.param_groups, self._options, self.base_lrs, strict=True):
            group.update(options, initial_lr=base, lr=base * self.factor(self.last_epoch))
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

"""How the learning rate moves over a run, as a factor of the optimizer's own."""

import logging
import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_illada.training.config.schedule import Reactive, Schedule

log = logging.getLogger(__name__)


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

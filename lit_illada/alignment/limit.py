"""Ends an alignment run after a number of forward passes."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_illada.alignment.module import AlignModule


class ForwardLimit(Callback):
    """Ends the run, validated and saved, after the rollout at whose end its forward passes are nearest to a limit.

    The passes are part of every checkpoint, so the limit holds for a run over all its resumes.
    """

    def __init__(self, max_forwards: float) -> None:
        """max_forwards: rows of forward passes in rollouts, scoring and updates, over all ranks."""
        self._max_forwards = max_forwards
        self.is_reached = False
        self.expected_steps: int | None = None
        """Optimizer steps of the whole run, by the passes so far; None before the end of the first rollout."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step_before = -1
        self._check(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, AlignModule)
        step, updates = trainer.global_step, module.config.updates
        if step in (0, self._step_before) or step % updates:
            return
        num_forwards = module.cost()["forwards"]
        per_rollout = num_forwards / (step // updates)
        if num_forwards + per_rollout / 2 >= self._max_forwards:
            self.is_reached = trainer.should_stop = True
            self.expected_steps = step
        else:
            self.expected_steps = updates * max(step // updates + 1, round(self._max_forwards / per_rollout))

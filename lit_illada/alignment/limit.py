"""Ends an alignment run after a number of forward passes."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_illada.alignment.module import AlignModule


class ForwardLimit(Callback):
    """Ends the run, validated and saved, after the rollout at whose end its forward passes are nearest to a limit.

    The passes are part of every checkpoint, so the limit holds for a run over all its resumes.
    """

    def __init__(self, max_forwards: float, step_passes: float, updates: int) -> None:
        """
        Args:
            max_forwards: rows of forward passes in rollouts, scoring and updates, over all ranks.
            step_passes: passes of an optimizer step if completions fill their canvas, used until the end of a rollout.
            updates: optimizer steps per rollout.
        """
        self._max_forwards = max_forwards
        self._updates = updates
        self.is_reached = False
        self.expected_steps = self._steps(0, step_passes * updates)
        """Optimizer steps of the whole run: by the passes so far, or by `step_passes` before the end of a rollout."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step_before = -1
        # A run that is resumed within a rollout may already have more steps than the estimate.
        self.expected_steps = max(self.expected_steps, self._updates * -(-trainer.global_step // self._updates))
        self._check(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, AlignModule)
        step, updates = trainer.global_step, self._updates
        if step in (0, self._step_before) or step % updates:
            return
        num_forwards = module.cost()["forwards"]
        per_rollout = num_forwards / (step // updates)
        if num_forwards + per_rollout / 2 >= self._max_forwards:
            self.is_reached = trainer.should_stop = True
            self.expected_steps = step
        else:
            self.expected_steps = self._steps(step, per_rollout)

    def _steps(self, step: int, per_rollout: float) -> int:
        """Expected steps of the run, at least one rollout more than it has at `step`."""
        return self._updates * max(step // self._updates + 1, round(self._max_forwards / per_rollout))

"""Detects divergence, from non-finite gradients and lasting loss spikes, and ends or rolls back the run.

A step with a non-finite gradient is skipped; several in a row mean that the weights or the optimizer's moments cannot
recover. A loss spike usually recovers by itself (PaLM, arXiv 2204.02311, saw about twenty; OLMo 2, arXiv 2501.00656,
skips the steps that cause them), so spikes are counted and logged, and only one that does not end is a divergence.
"""

import logging
import math
import statistics
from collections import deque
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_illada.errors import UserError
from lit_illada.training.checkpointing.files import newest_checkpoint_until
from lit_illada.training.checkpointing.saving import Checkpoints
from lit_illada.training.config.divergence import Rollback, SpikeConfig, Stop
from lit_illada.training.metrics import publish

log = logging.getLogger(__name__)
_NORMAL = 1.4826  # standard deviation over median absolute deviation, for a normal distribution


class Diverged(Exception):  # noqa: N818  an outcome, not an error
    """Ends a fit that has diverged and is to resume from `checkpoint`. Every rank raises it at the same step."""

    def __init__(self, reason: str, step: int, checkpoint: Path, response: Rollback) -> None:
        super().__init__(reason)
        self.reason = reason
        self.step = step
        self.checkpoint = checkpoint
        self.response = response


class LossSpikes:
    """Detects spikes in the sequence of losses, as defined by SpikeConfig. Its state dict has plain numbers only."""

    def __init__(self, config: SpikeConfig) -> None:
        self._config = config
        self._recent: deque[float] = deque(maxlen=config.window)
        self._spiking: list[float] = []
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self._recent), "spiking": list(self._spiking), "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._recent = deque(state_dict["recent"], maxlen=self._config.window)
        self._spiking = list(state_dict["spiking"])
        self.count = state_dict["count"]

    @property
    def steps(self) -> int:
        """Length of the current spike in steps; 0: there is none."""
        return len(self._spiking)

    @property
    def limit(self) -> float:
        """The loss above which a step is part of a spike; infinite until half a window of losses is known."""
        if len(self._recent) < self._config.window // 2:
            return math.inf
        median = statistics.median(self._recent)
        deviation = _NORMAL * statistics.median(abs(loss - median) for loss in self._recent)
        return median + max(self._config.threshold * deviation, self._config.min_rise)

    def observe(self, step: int, loss: float) -> None:
        """Update with a step's loss; a non-finite one, whose step is skipped, is ignored."""
        if not math.isfinite(loss):
            return
        limit = self.limit
        if loss > limit:
            self._spiking.append(loss)
            if self.steps == 1:
                self.count += 1
                log.warning("step %d: loss spike: %.3f nats per masked token, limit %.3f", step, loss, limit)
            if self.steps >= self._config.window:
                log.warning("step %d: the loss spike has lasted for %d steps: new level", step, self.steps)
                self._recent.extend(self._spiking)
                self._spiking.clear()
            return
        if self._spiking:
            highest = max(self._spiking)
            log.warning("step %d: the loss spike of %d steps is over; its maximum was %.3f", step, self.steps, highest)
            self._spiking.clear()
        self._recent.append(loss)


class DivergenceGuard(Callback):
    """Logs steps skipped for a non-finite gradient and loss spikes, and ends a fit that has diverged.

    Raises UserError if the run is to stop, and Diverged if it is to resume from an earlier checkpoint.

    rollbacks: number of rollbacks of the run so far.
    """

    def __init__(
        self,
        response: Stop | Rollback,
        spikes: SpikeConfig,
        max_nonfinite_steps: int,
        checkpoints: Checkpoints,
        rollbacks: int,
    ) -> None:
        self._response = response
        self._spikes = LossSpikes(spikes)
        self._max_nonfinite_steps = max_nonfinite_steps
        self._checkpoints = checkpoints
        self._rollbacks = rollbacks
        self._skipped = 0
        self._in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self._skipped, "spikes": self._spikes.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._skipped, self._in_a_row = state_dict["skipped"], 0
        self._spikes.load_state_dict(state_dict["spikes"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._rollbacks:
            publish(pl_module, {"train/rollbacks": float(self._rollbacks)})

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step_before:
            return
        # both are sums over all ranks, so every rank decides the same
        norm, loss = float(pl_module.gradient_norm), float(pl_module.step_nll)  # type: ignore[arg-type]
        if not math.isfinite(norm):
            self._observe_nonfinite(trainer, pl_module, norm)
            return
        self._in_a_row = 0
        spikes_before = self._spikes.count
        self._spikes.observe(trainer.global_step, loss)
        if self._spikes.count > spikes_before:
            publish(pl_module, {"train/loss_spikes": float(self._spikes.count)})
        most = self._response.max_spike_steps
        if most is not None and self._spikes.steps >= most:
            self._diverge(trainer, f"the loss has spiked for {self._spikes.steps} steps", self._spikes.steps)

    def _observe_nonfinite(self, trainer: Trainer, pl_module: LightningModule, norm: float) -> None:
        self._skipped += 1
        self._in_a_row += 1
        log.warning("step %d: the gradient norm is %s; the step is skipped", trainer.global_step, norm)
        publish(pl_module, {"train/skipped_steps": float(self._skipped)})
        if self._in_a_row >= self._max_nonfinite_steps:
            if isinstance(self._response, Stop):
                # skipped steps left the weights as they were before the first of them
                self._checkpoints.stop_after_step(
                    UserError(
                        f"{self._in_a_row} steps in a row had a non-finite gradient, up to step {trainer.global_step}; "
                        f"the weights before them are saved in {self._checkpoints.dirpath}: resume with a lower "
                        "optim.optimizer.learning_rate"
                    )
                )
                return
            self._diverge(trainer, f"{self._in_a_row} steps in a row had a non-finite gradient", self._in_a_row)

    def _diverge(self, trainer: Trainer, what: str, steps: int) -> None:
        folder = Path(str(self._checkpoints.dirpath))
        first = trainer.global_step - steps + 1
        reason = f"{what}, from step {first} to {trainer.global_step}"
        steps_back = self._response.steps_back if isinstance(self._response, Rollback) else 2
        # rank 0's view of the folder, so that all ranks go back to the same checkpoint
        good = trainer.strategy.broadcast(newest_checkpoint_until(folder, first - steps_back))
        if good is None:
            raise UserError(
                f"{reason}, and there is no checkpoint at least {steps_back} steps older to go back to: start again "
                "with a lower optim.optimizer.learning_rate, or save more often and keep more "
                "(trainer.checkpoint_every_steps, trainer.keep_checkpoints)"
            )
        if isinstance(self._response, Stop):
            raise UserError(
                f"{reason}; the last checkpoint before it is {good}: remove the later ones and resume with a lower "
                "optim.optimizer.learning_rate"
            )
        if self._rollbacks >= self._response.max_rollbacks:
            raise UserError(
                f"{reason}, after {self._rollbacks} rollbacks (trainer.on_divergence.max_rollbacks="
                f"{self._response.max_rollbacks}): check the data and the settings before you resume from {good}"
            )
        raise Diverged(reason, trainer.global_step, good, self._response)

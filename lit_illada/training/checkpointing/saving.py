"""Callback that saves checkpoints and removes those that the retention rule does not select."""

import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger

from lit_illada.errors import UserError
from lit_illada.training.checkpointing.files import checkpoint_path, checkpoints_by_step, link_best, remove_checkpoint
from lit_illada.training.checkpointing.writer import CheckpointWriter
from lit_illada.training.record import record_sizes
from lit_illada.training.run_module import RunModule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retention:
    """Rule for which checkpoints are retained; the last one always is."""

    newest: int
    """Number of newest checkpoints to retain."""
    every_steps: int | None = None
    """Also retain multiples of this interval; None: none."""
    best: int = 0
    """Also retain this many with the lowest `RunModule.selected_by`, among checkpoints of validated steps."""
    counted_every_steps: int = 1
    """`newest` prefers multiples of this interval, so that checkpoints saved on a stop do not displace them."""

    def select(self, steps: Iterable[int], bounds: Mapping[int, float]) -> set[int]:
        """The steps to retain. bounds: `RunModule.selected_by` of the validated steps."""
        ordered = sorted(steps)
        regular = {step for step in ordered if self.every_steps is not None and step % self.every_steps == 0}
        counted = sorted(ordered, key=lambda step: (step % self.counted_every_steps == 0, step))[-self.newest :]
        return {*ordered[-1:], *counted, *regular, *self.ranked(ordered, bounds)[: self.best]}

    @staticmethod
    def ranked(steps: Iterable[int], bounds: Mapping[int, float]) -> list[int]:
        """The validated steps by ascending bound; ties by ascending step."""
        return sorted(
            (step for step in steps if math.isfinite(bounds.get(step, math.nan))), key=lambda s: (bounds[s], s)
        )


class Checkpoints(Checkpoint):
    """Saves every `every_steps` optimizer steps and at the last one, and applies `retention`.

    A step that is also validated is saved after the validation, so that a resume never skips a validation. Checkpoints
    are written in the background; one becomes visible, and others are removed, between two steps, once every process
    has written its part.
    """

    def __init__(self, folder: Path, every_steps: int, val_every_steps: int, retention: Retention) -> None:
        self.dirpath = folder
        self._every_steps = every_steps
        self._val_every_steps = val_every_steps
        self._retention = retention
        self._bounds: dict[int, float] = {}
        # sizes of the record files, in bytes; None: the checkpoint is of an older version
        self.record_sizes: dict[str, int] | None = None
        self._saved_step: int | None = None
        self._is_in_flight = False
        self._is_stop_requested = False
        self._error: UserError | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"bounds": dict(self._bounds), "record_sizes": self.record_sizes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._bounds = dict(state_dict["bounds"])
        self.record_sizes = state_dict.get("record_sizes")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step or None  # a resumed run starts from a saved step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        # only between two steps: a checkpoint has no accumulated gradients
        if trainer.global_step == self._step_before:
            return
        self._publish(trainer, is_waiting=False)
        if not self.is_validated(trainer.global_step):
            self._end_step(trainer, is_last=self._is_stop_requested)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._publish(trainer, is_waiting=False)
            self._end_step(trainer, is_last=self._is_stop_requested or trainer.should_stop)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._publish(trainer, is_waiting=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # a second Ctrl-C ends the run without waiting
        if not self._is_in_flight or isinstance(exception, KeyboardInterrupt):
            return
        self._is_in_flight = False
        writer = _writer(trainer)
        writer.wait()
        if writer.is_sharded:
            return  # after an exception the ranks cannot agree that all parts are written, so it stays partial
        if writer.error is None:
            writer.publish()
            return
        writer.discard()
        if isinstance(exception, OSError):
            raise writer.error from exception  # the same full disk, noticed first by another file
        log.error("%s", writer.error)

    def is_validated(self, step: int) -> bool:
        """Whether a validation follows this step."""
        return step % self._val_every_steps == 0

    def stop_after_step(self, error: UserError | None = None) -> None:
        """Request a save at the end of this step, complete on disk; then raise `error`, if any.

        Not saved at once, because Lightning runs this callback last: before the other callbacks (such as the weight
        average) have processed the step, the state is not one that an uninterrupted run passes through.
        """
        self._is_stop_requested, self._error = True, self._error or error

    def _end_step(self, trainer: Trainer, *, is_last: bool) -> None:
        is_due = trainer.global_step >= trainer.max_steps or trainer.global_step % self._every_steps == 0
        if is_last or (trainer.global_step > 0 and is_due):
            self._start(trainer)
        if is_last:
            self._publish(trainer, is_waiting=True)
        if self._error is not None:
            raise self._error

    def _start(self, trainer: Trainer) -> None:
        if self._saved_step == trainer.global_step:
            return
        started_at = time.perf_counter()
        self._publish(trainer, is_waiting=True)  # wait for the previous write: host memory holds one copy only
        step, module = trainer.global_step, trainer.lightning_module
        assert isinstance(module, RunModule)
        if module.validated_at == step:
            self._bounds[step] = float(trainer.callback_metrics[module.selected_by])
        module.end_step()  # log the curves of the saved step before the checkpoint
        if trainer.is_global_zero:
            _flush(trainer)
            self.record_sizes = record_sizes(self.dirpath.parent)
        trainer.save_checkpoint(checkpoint_path(self.dirpath, step), weights_only=False)
        self._is_in_flight, self._saved_step = True, step
        _log(trainer, {"perf/checkpoint_pause_s": time.perf_counter() - started_at}, step)

    def _publish(self, trainer: Trainer, *, is_waiting: bool) -> None:
        """Make the checkpoint visible once every process has written its part.

        Raises UserError on every rank if writing failed on any.
        """
        if not self._is_in_flight:
            return
        writer = _writer(trainer)
        if is_waiting:
            writer.wait()
        if not trainer.strategy.reduce_boolean_decision(not writer.is_busy, all=True):
            return
        self._is_in_flight = False
        if error := _any_error(trainer, writer):
            writer.discard()
            raise error
        assert self._saved_step is not None
        _log(trainer, {"perf/checkpoint_write_s": writer.write_s}, self._saved_step)
        # before the checkpoint is visible: a kill must not lose points of steps that are not trained again
        _flush(trainer)
        writer.publish()
        if trainer.is_global_zero:
            self._apply_retention()

    def _apply_retention(self) -> None:
        checkpoints = checkpoints_by_step(self.dirpath)
        retained = self._retention.select(checkpoints, self._bounds)
        if self._retention.best:
            best = self._retention.ranked(retained, self._bounds)[:1]
            link_best(self.dirpath, checkpoints[best[0]] if best else None)
        for step in checkpoints.keys() - retained:
            remove_checkpoint(checkpoints[step])


def _any_error(trainer: Trainer, writer: CheckpointWriter) -> UserError | None:
    """The first rank's write error, the same on every rank; None if all succeeded."""
    if not trainer.strategy.reduce_boolean_decision(writer.error is not None, all=False):
        return None
    if trainer.world_size == 1:
        return writer.error
    messages: list[str | None] = [None] * trainer.world_size
    dist.all_gather_object(messages, writer.error and str(writer.error))
    return UserError(next(message for message in messages if message is not None))


def _writer(trainer: Trainer) -> CheckpointWriter:
    writer = trainer.strategy.checkpoint_io
    assert isinstance(writer, CheckpointWriter)
    return writer


def _log(trainer: Trainer, values: dict[str, float], step: int) -> None:
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)


def _flush(trainer: Trainer) -> None:
    """Write buffered TensorBoard points to the event files."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()

"""When is a run's state saved, and which of its checkpoints stay?"""

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
from lit_illada.training.module import PretrainModule
from lit_illada.training.record import record_sizes

log = logging.getLogger(__name__)

_BOUND = "val/nll_bound"


@dataclass(frozen=True)
class Retention:
    """newest: how many of the last stay. every_steps: those of its multiples stay too; None: none for that.
    best: so many of the lowest val/nll_bound stay too, of the checkpoints of validated steps.
    counted_every_steps: the newest are counted among its multiples, before any other; the very last stays besides.
    """

    newest: int
    every_steps: int | None = None
    best: int = 0
    counted_every_steps: int = 1

    def kept(self, steps: Iterable[int], bounds: Mapping[int, float]) -> set[int]:
        """bounds: of those steps that were validated."""
        there = sorted(steps)
        regular = {step for step in there if self.every_steps is not None and step % self.every_steps == 0}
        counted = sorted(there, key=lambda step: (step % self.counted_every_steps == 0, step))[-self.newest :]
        return {*there[-1:], *counted, *regular, *self.ranked(there, bounds)[: self.best]}

    @staticmethod
    def ranked(steps: Iterable[int], bounds: Mapping[int, float]) -> list[int]:
        """The validated ones, the best first; of equals the earliest."""
        return sorted(
            (step for step in steps if math.isfinite(bounds.get(step, math.nan))), key=lambda s: (bounds[s], s)
        )


class Checkpoints(Checkpoint):
    """Saves every `every_steps` optimizer steps and at the last one; keeps what `retention` says.

    A step that is also validated is saved after the validation, so that a resume never skips one. A checkpoint appears
    in the folder, and others leave it, between two steps: once every process has written what it holds.
    """

    def __init__(self, folder: Path, every_steps: int, val_every_steps: int, retention: Retention) -> None:
        self.dirpath = folder
        self._every_steps = every_steps
        self._val_every_steps = val_every_steps
        self._retention = retention
        self._bounds: dict[int, float] = {}
        self.record_sizes: dict[str, int] | None = None  # of the record at this checkpoint; None: an older version's
        self._saved_step: int | None = None
        self._is_in_flight = False
        self._is_asked = False
        self._error: UserError | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"bounds": dict(self._bounds), "record_sizes": self.record_sizes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._bounds = dict(state_dict["bounds"])
        self.record_sizes = state_dict.get("record_sizes")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step or None  # a resumed run begins with what is saved

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        # between two steps only: what a step has accumulated so far is in no checkpoint
        if trainer.global_step == self._step_before:
            return
        self._publish(trainer, is_waiting=False)
        if not self.is_validated(trainer.global_step):
            self._end_step(trainer, is_last=self._is_asked)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._publish(trainer, is_waiting=False)
            self._end_step(trainer, is_last=self._is_asked or trainer.should_stop)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._publish(trainer, is_waiting=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # a second Ctrl-C waits for nothing
        if not self._is_in_flight or isinstance(exception, KeyboardInterrupt):
            return
        self._is_in_flight = False
        writer = _writer(trainer)
        writer.wait()
        if writer.is_sharded:
            return  # whether the others have written theirs nobody can ask them now: the partial stays one
        if writer.error is None:
            writer.publish()
            return
        writer.discard()
        if isinstance(exception, OSError):
            raise writer.error from exception  # one full disk, of which another file told first
        log.error("%s", writer.error)

    def is_validated(self, step: int) -> bool:
        """Whether a validation follows this step."""
        return step % self._val_every_steps == 0

    def stop_after_step(self, error: UserError | None = None) -> None:
        """Save at the end of this step, due or not, to the disk, and raise the error, if any.

        Not at once: Lightning runs this callback last, and what is saved before the others (an average of the weights,
        say) have taken the step is no state that an undisturbed run was ever in.
        """
        self._is_asked, self._error = True, self._error or error

    def _end_step(self, trainer: Trainer, *, is_last: bool) -> None:
        is_due = trainer.global_step >= trainer.max_steps or trainer.global_step % self._every_steps == 0
        if is_last or (trainer.global_step > 0 and is_due):
            self._begin(trainer)
        if is_last:
            self._publish(trainer, is_waiting=True)
        if self._error is not None:
            raise self._error

    def _begin(self, trainer: Trainer) -> None:
        if self._saved_step == trainer.global_step:
            return
        started_at = time.perf_counter()
        self._publish(trainer, is_waiting=True)  # the one before: there is memory for one copy
        step, module = trainer.global_step, trainer.lightning_module
        assert isinstance(module, PretrainModule)
        if module.validated_at == step:
            self._bounds[step] = float(trainer.callback_metrics[_BOUND])
        module.end_step()  # its curves belong to the step that is saved
        if trainer.is_global_zero:
            _flush(trainer)
            self.record_sizes = record_sizes(self.dirpath.parent)
        trainer.save_checkpoint(checkpoint_path(self.dirpath, step), weights_only=False)
        self._is_in_flight, self._saved_step = True, step
        _tell(trainer, {"perf/checkpoint_pause_s": time.perf_counter() - started_at}, step)

    def _publish(self, trainer: Trainer, *, is_waiting: bool) -> None:
        """Let what every process has written take its place. Raises UserError in all of them where one could not."""
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
        _tell(trainer, {"perf/checkpoint_write_s": writer.write_s}, self._saved_step)
        _flush(trainer)  # before the checkpoint: a kill must not lose points of steps that are not trained again
        writer.publish()
        if trainer.is_global_zero:
            self._tidy()

    def _tidy(self) -> None:
        there = checkpoints_by_step(self.dirpath)
        kept = self._retention.kept(there, self._bounds)
        if self._retention.best:
            best = self._retention.ranked(kept, self._bounds)[:1]
            link_best(self.dirpath, there[best[0]] if best else None)
        for step in there.keys() - kept:
            remove_checkpoint(there[step])


def _any_error(trainer: Trainer, writer: CheckpointWriter) -> UserError | None:
    """What kept some process from writing: the same error in each."""
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


def _tell(trainer: Trainer, figures: dict[str, float], step: int) -> None:
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step)


def _flush(trainer: Trainer) -> None:
    """Write the logged points to the files."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()

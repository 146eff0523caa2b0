"""Callbacks that end a run early, saved: on a signal (`GracefulStop`) or after a time limit (`TimeLimit`)."""

import logging
import os
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_illada.runtime import ranks
from lit_illada.runtime.signals import is_nohup
from lit_illada.training.checkpointing.saving import Checkpoints

log = logging.getLogger(__name__)

_TERMINALS = (4, 5, *range(136, 144))  # Linux's major device numbers of consoles and pseudo-terminals
# in order of priority: ranks that received different signals agree on the first of these
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class GracefulStop(Callback):
    """Saves and ends the run after the current step on Ctrl-C, SIGTERM, SIGHUP or SIGUSR1; a second Ctrl-C ends it at
    once.

    `signal` is None until a stop, and the same on all ranks afterwards: job managers may send several signals, and
    different ones to different processes. SIGUSR1 is Slurm's warning before its time limit. SIGHUP, sent when a
    terminal closes, stays ignored under nohup. One instance serves all fits of a run, so that a signal received at the
    end of one fit stops the next.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._process = os.getpid()
        self._handled = [number for number in _STOP_SIGNALS if not is_nohup(number)]

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle signals within the block. One that arrives before the first step stops the run after that step."""
        before = {number: signal.getsignal(number) for number in self._handled}
        self._install_handlers()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install_handlers()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install_handlers()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self._step_before:
            return
        # collective: every rank must leave at the same step
        if not trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False):
            return
        self.signal = next(number for number in _STOP_SIGNALS if self._is_received(trainer, number))
        trainer.should_stop = True
        checkpoints = trainer.checkpoint_callback
        assert isinstance(checkpoints, Checkpoints)
        checkpoints.stop_after_step()
        if not checkpoints.is_validated(trainer.global_step):
            trainer.limit_val_batches = 0  # Lightning would otherwise validate once more before it stops

    def _install_handlers(self) -> None:
        # replaces Lightning's handler, which would communicate with the other ranks in the middle of a step
        for number in self._handled:
            signal.signal(number, self._on_signal)

    def _is_received(self, trainer: Trainer, number: signal.Signals) -> bool:
        return trainer.strategy.reduce_boolean_decision(self.signal is number, all=False)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked data loader worker, which ends with the run
            return
        if self.signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signal = signal.Signals(number)
        if number == signal.SIGHUP:
            _leave_closed_terminal()
        if ranks.rank() == 0:
            log.warning("%s: saving after this step; Ctrl-C once more to stop at once", self.signal.name)


def _leave_closed_terminal() -> None:
    """Discard further output to a closed terminal; writing to it would fail and end the run unsaved."""
    for handle in (1, 2):
        is_closed = not os.isatty(handle) and _is_hung_up(handle)
        if is_closed:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, handle)
            os.close(null)


def _is_hung_up(handle: int) -> bool:
    """Whether the handle is a terminal that has closed, for which `isatty` is false."""
    return stat.S_ISCHR(os.fstat(handle).st_mode) and os.major(os.fstat(handle).st_rdev) in _TERMINALS


class TimeLimit(Callback):
    """Ends the run, validated and saved, after `max_time_s` seconds of training; validations and pauses are excluded.

    The time trained so far is part of every checkpoint, so that the limit holds for a run over all its resumes.
    """

    def __init__(self, max_time_s: float) -> None:
        self._max_time_s = max_time_s
        self._trained_s = 0.0
        self.is_reached = False

    def state_dict(self) -> dict[str, Any]:
        return {"trained_s": self._trained_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._trained_s = state_dict["trained_s"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        now = time.perf_counter()
        self._trained_s += now - self._since
        self._since = now
        if trainer.global_step == self._step_before:
            return
        # collective: clocks differ, and every rank must leave at the same step
        is_over = self._trained_s >= self._max_time_s
        if trainer.strategy.reduce_boolean_decision(is_over, all=False):
            self.is_reached = trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

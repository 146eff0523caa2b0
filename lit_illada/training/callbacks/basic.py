"""What happens beside training? Samples, progress on screen, and stopping well."""

import logging
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from lit_illada.runtime import ranks as processes
from lit_illada.training.callbacks.tensorboard import add_completion
from lit_illada.training.callbacks.throughput import Throughput
from lit_illada.training.checkpointing.saving import Checkpoints
from lit_illada.training.metrics import publish

log = logging.getLogger(__name__)

_TERMINALS = (4, 5, *range(136, 144))  # Linux's device numbers of consoles and pseudo-terminals
# the first of these that any rank has been sent is what ends them all
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class GracefulStop(Callback):
    """Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 ends the run, saved, after the step in progress; a second Ctrl-C at once.

    Who manages a job may announce its end more than once, and differently to each process: `signal` is, after the
    stop, the same on all ranks. SIGHUP, sent when a terminal closes, stays ignored under nohup. SIGUSR1
    is what Slurm sends to say that the time is nearly over. One for all fits of a run: what one of them had no time to
    heed stops the next.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._process = os.getpid()
        self._heeded = [number for number in _STOPPING if not _is_nohup(number)]

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """From here on signals are heeded: those that come before the first step stop the run after it."""
        before = {number: signal.getsignal(number) for number in self._heeded}
        self._listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self._step_before:
            return
        # every rank must take the same way out
        if not trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False):
            return
        self.signal = next(number for number in _STOPPING if self._is_asked(trainer, number))
        trainer.should_stop = True
        checkpoints = trainer.checkpoint_callback
        assert isinstance(checkpoints, Checkpoints)
        checkpoints.stop_after_step()
        if not checkpoints.is_validated(trainer.global_step):
            trainer.limit_val_batches = 0  # Lightning would validate once more before it stops

    def _listen(self) -> None:
        # also over Lightning's own handler, which would speak to the other ranks in the middle of a step
        for number in self._heeded:
            signal.signal(number, self._request)

    def _is_asked(self, trainer: Trainer, number: signal.Signals) -> bool:
        return trainer.strategy.reduce_boolean_decision(self.signal is number, all=False)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's, which ends with the run
            return
        if self.signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signal = signal.Signals(number)
        if number == signal.SIGHUP:
            _leave_closed_terminal()
        if processes.rank() == 0:
            log.warning("%s: saving after this step; Ctrl-C once more to stop at once", self.signal.name)


def _is_nohup(number: signal.Signals) -> bool:
    return number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def _leave_closed_terminal() -> None:
    """Discard further output to a terminal that has closed; writing to it would fail and end the run unsaved."""
    for handle in (1, 2):
        closed = not os.isatty(handle) and _is_hung_up(handle)
        if closed:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, handle)
            os.close(null)


def _is_hung_up(handle: int) -> bool:
    """Whether it is a terminal that no longer answers; `isatty` is false for one."""
    return stat.S_ISCHR(os.fstat(handle).st_mode) and os.major(os.fstat(handle).st_rdev) in _TERMINALS


class TimeLimit(Callback):
    """Ends the run, validated and saved, after so many seconds of training; validations and pauses do not count."""

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
        # every rank must take the same way out
        is_over = self._trained_s >= self._max_time_s
        if trainer.strategy.reduce_boolean_decision(is_over, all=False):
            self.is_reached = trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()


class SkippedShards(Callback):
    """data/skipped_shards: how many training shards were found bad and skipped, by any rank or loader."""

    def __init__(self, is_bad: Tensor, every_steps: int) -> None:
        self._is_bad = is_bad
        self._every_steps = every_steps

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step_before or trainer.global_step % self._every_steps:
            return
        seen = self._is_bad.to(pl_module.device, torch.int32)
        on_any_rank: Tensor = trainer.strategy.reduce(seen, reduce_op="sum")  # type: ignore[assignment]
        publish(pl_module, {"data/skipped_shards": float((on_any_rank > 0).sum())})


class TextSamples(Callback):
    """Generates from each prompt at every validation: into TensorBoard and `samples.txt` of the run folder.

    complete: the completion of each prompt, deterministic.
    """

    def __init__(self, prompts: list[str], complete: Callable[[], list[str]], file: Path) -> None:
        self._prompts = prompts
        self._complete = complete
        self._file = file

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        completions = self._complete() if self._prompts else []
        if not trainer.is_global_zero or not completions:
            return
        step = trainer.global_step
        with self._file.open("a", encoding="utf-8") as file:
            for prompt, completion in zip(self._prompts, completions, strict=True):
                file.write(f"=== step {step}\n{prompt}{completion}\n\n")
        for index, (prompt, completion) in enumerate(zip(self._prompts, completions, strict=True)):
            add_completion(trainer.loggers, f"samples/prompt_{index}", prompt, completion, step)


class ProgressBar(Callback):
    """One line on screen: steps, loss, validation bound, tokens a second, time left.

    Where there is no terminal, a plain line at every validation.
    """

    def __init__(self, throughput: Throughput, console: Console) -> None:
        self._throughput = throughput
        self._console = console
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._bar.start()
        self._task = self._bar.add_task("train", total=trainer.max_steps, completed=trainer.global_step, status="")
        self._started_at, self._first_step = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            self._bar.update(self._task, completed=trainer.global_step, status=self._status(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or self._console.is_terminal or trainer.state.fn != "fit":
            return
        done = trainer.global_step - self._first_step
        left_s = (time.perf_counter() - self._started_at) / max(1, done) * (trainer.max_steps - trainer.global_step)
        self._console.print(
            f"step {trainer.global_step}/{trainer.max_steps}  {self._status(trainer)}  {left_s:.0f} s left",
            highlight=False,
        )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and hasattr(self, "_task"):
            self._bar.update(self._task, description="validate")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and hasattr(self, "_task"):
            self._bar.update(self._task, description="train")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._bar.stop()

    def _status(self, trainer: Trainer) -> str:
        names = {"train/loss": "loss", "val/nll_bound": "bound"}
        values = trainer.callback_metrics
        parts = [f"{short} {float(values[name]):.3f}" for name, short in names.items() if name in values]
        return "  ".join([*parts, f"{self._throughput.tokens_per_s:,.0f} tokens/s"])

"""Callbacks that report a run's progress: on screen (`ProgressBar`) and in progress.json (`ProgressFile`)."""

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lit_illada.runtime.console import Console
from lit_illada.runtime.files import write_atomically
from lit_illada.training.callbacks.throughput import Throughput


def num_steps(trainer: Trainer) -> int:
    """Optimizer steps of the run, or those that a callback expects where a limit will end it earlier."""
    expected = [steps for each in trainer.callbacks if (steps := getattr(each, "expected_steps", None)) is not None]  # type: ignore[attr-defined]
    return min([trainer.max_steps, *expected])


class ProgressBar(Callback):
    """One line on screen: steps, loss, validation bound, tokens/s, time left. Only rank 0 prints.

    Where output is not a terminal, one plain line per validation.
    """

    def __init__(self, throughput: Throughput, console: Console) -> None:
        self._throughput = throughput
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._bar.start()
        self._task = self._bar.add_task("train", total=num_steps(trainer), completed=trainer.global_step, status="")
        self._started_at, self._first_step = time.perf_counter(), trainer.global_step
        self._shown_step = trainer.global_step

    def describe(self, phase: str) -> None:
        """Show what is being done, such as "rollout"."""
        if hasattr(self, "_task"):
            self._bar.update(self._task, description=phase)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # once per optimizer step: reading the metrics waits for all work of the GPU
        if not trainer.is_global_zero or not self._console.is_terminal or trainer.global_step == self._shown_step:
            return
        self._shown_step = trainer.global_step
        total = num_steps(trainer)
        self._bar.update(self._task, completed=self._shown_step, total=total, status=self._status(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or self._console.is_terminal or trainer.state.fn != "fit":
            return
        done = trainer.global_step - self._first_step
        total = num_steps(trainer)
        left_s = (time.perf_counter() - self._started_at) / max(1, done) * (total - trainer.global_step)
        self._console.print(
            f"step {trainer.global_step}/{total}  {self._status(trainer)}  {left_s:.0f} s left",
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
        names = {
            "train/loss": "loss", "val/nll_bound": "bound", "rollout/reward": "reward", "val/accuracy": "accuracy",
        }  # fmt: skip
        values = trainer.callback_metrics
        parts = [f"{short} {float(values[name]):.3f}" for name, short in names.items() if name in values]
        return "  ".join([*parts, f"{self._throughput.tokens_per_s:,.0f} tokens/s"])


class ProgressFile(Callback):
    """Writes progress.json, which the sweep monitor reads.

    Keys: step, max_steps, begun_at_step, updated_at, elapsed_s, tokens_per_s, metrics (the last values logged).
    elapsed_s counts from the first step of this process, which followed `begun_at_step`. Written at most every
    `every_s` seconds, and after every validation.
    """

    def __init__(self, file: Path, throughput: Throughput, every_s: float = 2.0) -> None:
        self._file = file
        self._throughput = throughput
        self._every_s = every_s
        self._written_at = -every_s

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started_at, self._first_step = time.monotonic(), trainer.global_step
        self._write(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if time.monotonic() - self._written_at >= self._every_s:
            self._write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        self._written_at = time.monotonic()
        record = {
            "step": trainer.global_step,
            "max_steps": num_steps(trainer),
            "begun_at_step": self._first_step,
            "updated_at": datetime.now().isoformat(timespec="seconds"),
            "elapsed_s": round(self._written_at - self._started_at, 3),
            "tokens_per_s": self._throughput.tokens_per_s,
            "metrics": {name: float(value) for name, value in sorted(trainer.callback_metrics.items())},
        }
        # not synced to disk: after a crash of the machine a slightly older file does no harm
        write_atomically(self._file, json.dumps(record) + "\n", is_durable=False)

"""How far is a run? A small file in its folder tells whoever watches many."""

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_illada.runtime.files import write_atomically
from lit_illada.training.callbacks.throughput import Throughput


class ProgressFile(Callback):
    """Writes progress.json: step, max_steps, begun_at_step, updated_at, elapsed_s, tokens_per_s and the metrics.

    At most every `every_s` seconds, and after every validation. elapsed_s counts from this process's first step, which
    followed `begun_at_step`.
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
            "max_steps": trainer.max_steps,
            "begun_at_step": self._first_step,
            "updated_at": datetime.now().isoformat(timespec="seconds"),
            "elapsed_s": round(self._written_at - self._started_at, 3),
            "tokens_per_s": self._throughput.tokens_per_s,
            "metrics": {name: float(value) for name, value in sorted(trainer.callback_metrics.items())},
        }
        write_atomically(self._file, json.dumps(record) + "\n", is_durable=False)

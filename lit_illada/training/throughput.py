"""How fast does a run train, and which share of the hardware's speed is that?"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_illada.batch import TokenBatch
from lit_illada.training.metrics import publish


class Throughput(Callback):
    """perf/tokens_per_s and perf/mfu, over the time spent training (validation and checkpoints not counted).

    count_flops: floating-point operations of a training micro-batch, from its layout and the LM-head rows computed.
    peak_flops_per_s: what one device's matrix multiplication reaches in the run's precision.
    """

    def __init__(
        self, count_flops: Callable[[TokenBatch, int], float], peak_flops_per_s: float, every_steps: int
    ) -> None:
        self._count_flops = count_flops
        self._peak = peak_flops_per_s
        self._every_steps = every_steps
        self._reset()
        self.tokens_per_s = 0.0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._step_before = trainer.global_step
        self._started_at = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: TokenBatch, batch_idx: int
    ) -> None:
        self._tokens += batch.input_ids.numel() * trainer.world_size
        self._flops += self._count_flops(batch, outputs["head_rows"])
        is_due = trainer.global_step != self._step_before and trainer.global_step % self._every_steps == 0
        if is_due and batch.input_ids.is_cuda:
            torch.cuda.synchronize()
        self._elapsed_s += time.perf_counter() - self._started_at
        if is_due:
            self.tokens_per_s = self._tokens / self._elapsed_s
            mfu = self._flops / self._elapsed_s / self._peak
            publish(pl_module, {"perf/tokens_per_s": self.tokens_per_s, "perf/mfu": mfu})
            self._reset()

    def _reset(self) -> None:
        self._tokens, self._flops, self._elapsed_s = 0, 0.0, 0.0


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """What a square matrix product reaches on the device now: the best of a few, operations a second."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    best_s = math.inf
    for _ in range(8):
        started_at = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best_s = min(best_s, time.perf_counter() - started_at)
    return 2 * size**3 / best_s

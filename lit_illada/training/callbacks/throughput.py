"""Measures training speed: tokens per second and model FLOPs utilisation (MFU)."""

import math
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_illada.batch import TokenBatch
from lit_illada.training.distributed.parallel import num_data_ranks
from lit_illada.training.metrics import publish


class Throughput(Callback):
    """Logs perf/tokens_per_s and perf/mfu over wall-clock time, including waiting for data, excluding validation.

    Tokens are those of the data; FLOPs are those of the rows that the model processes, twice as many with complementary
    masks. The totals (`cost`) are part of every checkpoint and continue after a resume.

    count_flops: floating-point operations of a training micro-batch, given the batch, the number of LM-head rows and
        the number of times the model processes the batch.
    measure_peak: measures the peak of a device's matrix multiplication in the run's precision, in FLOP/s. Called when
        training starts, since a rank's device is not known before.
    every_steps: logging interval in optimizer steps.
    """

    def __init__(
        self,
        count_flops: Callable[[TokenBatch, int, int], float],
        measure_peak: Callable[[torch.device], float],
        every_steps: int,
    ) -> None:
        self._count_flops = count_flops
        self._measure_peak = measure_peak
        self._peak = math.nan  # FLOP/s, until it is measured
        self._every_steps = every_steps
        self.tokens_per_s = 0.0
        self._total = {"tokens": 0, "flops": 0.0, "elapsed_s": 0.0, "peak_memory_bytes": 0}
        self._since = time.perf_counter()
        self._begin()

    def state_dict(self) -> dict[str, Any]:
        self._pause()
        return {"total": self.cost()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._total = dict(state_dict["total"])

    def cost(self) -> dict[str, float]:
        """Totals of the run: tokens and flops over all devices, elapsed_s of training, peak_memory_bytes.

        peak_memory_bytes is this process's GPU memory, or its resident host memory without a GPU.
        """
        return {
            "tokens": self._total["tokens"] + self._tokens,
            "flops": self._total["flops"] + self._flops,
            "elapsed_s": self._total["elapsed_s"] + self._elapsed_s,
            "peak_memory_bytes": max(self._total["peak_memory_bytes"], _peak_memory_bytes()),
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if math.isnan(self._peak):
            self._peak = self._measure_peak(trainer.strategy.root_device)
        self._begin()
        self._since = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if "flops" in outputs:  # the module counts them itself
            tokens, flops = outputs["tokens"], outputs["flops"]
        else:
            tokens = batch.input_ids.numel()
            flops = self._count_flops(batch, outputs["head_rows"], outputs["copies"])
        self._tokens += tokens * num_data_ranks(trainer)
        self._flops += flops * num_data_ranks(trainer)
        if trainer.global_step == self._step_before or trainer.global_step % self._every_steps:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self._pause()
        self.tokens_per_s = self._tokens / self._elapsed_s
        publish(
            pl_module,
            {
                "perf/tokens_per_s": self.tokens_per_s,
                "perf/mfu": self._flops / self._elapsed_s / self._peak / trainer.world_size,
            },
        )
        self._total = self.cost()
        self._begin()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause()

    def _begin(self) -> None:
        self._tokens, self._flops, self._elapsed_s = 0, 0.0, 0.0

    def _pause(self) -> None:
        now = time.perf_counter()
        self._elapsed_s += now - self._since
        self._since = now


def _peak_memory_bytes() -> int:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

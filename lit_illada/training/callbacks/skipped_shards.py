"""Logs how many training shards were damaged and skipped."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_illada.training.metrics import publish


class SkippedShards(Callback):
    """Logs data/skipped_shards: the number of training shards that any loader process of any rank has skipped.

    is_bad: (num_shards,), nonzero for a skipped shard; shared memory that the loader processes of this rank write.
    every_steps: logging interval in optimizer steps.
    """

    def __init__(self, is_bad: Tensor, every_steps: int) -> None:
        self._is_bad = is_bad
        self._every_steps = every_steps

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step_before or trainer.global_step % self._every_steps:
            return
        # the same shard may be skipped by several ranks; it counts once
        seen = self._is_bad.to(pl_module.device, torch.int32)
        on_any_rank: Tensor = trainer.strategy.reduce(seen, reduce_op="sum")  # type: ignore[assignment]
        publish(pl_module, {"data/skipped_shards": float((on_any_rank > 0).sum())})

"""Collective operations of a LightningModule over its data ranks.

Data ranks hold different rows; with tensor parallelism several ranks share the rows of one data rank.
"""

from contextlib import AbstractContextManager, nullcontext

import lightning.pytorch as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from lit_illada.training.distributed.parallel import num_data_ranks, whole_weights


class RankedModule(pl.LightningModule):
    """A module that knows its data rank."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._data_group: ProcessGroup | None = None  # of a sharded model; None: every rank is a data rank

    @property
    def _is_sharded(self) -> bool:
        return self._data_group is not None

    @property
    def _data_rank(self) -> int:
        group = self._data_group
        return self.trainer.global_rank if group is None else dist.get_rank(group)

    @property
    def _own_device(self) -> torch.device:
        """The device of this rank's collectives. After a fit `self.device` is the CPU, which NCCL does not support."""
        return self.trainer.strategy.root_device

    def whole_weights(self) -> AbstractContextManager[None]:
        """Holds the whole weights of a sharded model on every rank within the block, for generation: they are gathered
        once, not in every forward pass, and ranks may run different numbers of passes. Collective on entry and exit."""
        return whole_weights(self.model) if self._is_sharded else nullcontext()

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(value, group=self._data_group, reduce_op="sum")  # type: ignore[return-value]

    def _summed(self, values: Tensor) -> Tensor:
        """Values added up over all ranks, on the CPU. Collective."""
        return self._sum_over_ranks(values.to(self._own_device)).cpu()

    def _largest(self, value: int) -> int:
        """The largest value of any rank. Collective."""
        return int(self.trainer.strategy.reduce(torch.tensor(value, device=self._own_device), self._data_group, "max"))

    def _gathered(self, rows: Tensor) -> Tensor:
        """The rows of all data ranks, in their order. Collective."""
        return rows if num_data_ranks(self.trainer) == 1 else _gather_rows(rows.to(self._own_device), self._data_group)


def _gather_rows(rows: Tensor, group: ProcessGroup | None) -> Tensor:
    """The rows of all ranks along dimension 0; the other dimensions are padded with 0 to the largest. Collective."""
    shape = torch.tensor(rows.shape, device=rows.device)
    dist.all_reduce(shape, dist.ReduceOp.MAX, group=group)
    missing = [int(most) - own for most, own in zip(shape.tolist()[1:], rows.shape[1:], strict=True)]
    padding = [size for amount in reversed(missing) for size in (0, amount)]
    padded = F.pad(rows, padding).contiguous() if any(missing) else rows.contiguous()
    parts = [torch.empty_like(padded) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, padded, group=group)
    return torch.cat(parts)

"""Gathers tensors with equally many rows from the data ranks."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup


def gather_rows(rows: Tensor, group: ProcessGroup | None) -> Tensor:
    """The rows of all ranks along dimension 0; the other dimensions are padded with 0 to the largest. Collective."""
    shape = torch.tensor(rows.shape, device=rows.device)
    dist.all_reduce(shape, dist.ReduceOp.MAX, group=group)
    missing = [int(most) - own for most, own in zip(shape.tolist()[1:], rows.shape[1:], strict=True)]
    padding = [size for amount in reversed(missing) for size in (0, amount)]
    padded = F.pad(rows, padding).contiguous() if any(missing) else rows.contiguous()
    parts = [torch.empty_like(padded) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, padded, group=group)
    return torch.cat(parts)

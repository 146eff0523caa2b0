"""Boxes of sharded tensors that this process holds, and those of them that it writes."""

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lit_illada.training.checkpointing.sharded import Box


def local_box(tensor: DTensor) -> Box:
    """The box of the whole tensor that this process holds."""
    assert not any(placement.is_partial() for placement in tensor.placements), tensor.placements
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(begin, begin + size) for begin, size in zip(offset, shape, strict=True))


def own_parts(tensors: Mapping[str, DTensor]) -> dict[str, tuple[int, ...]]:
    """Offsets of the parts that this process writes, by tensor name. Collective: all processes call it.

    Each part is written once. Processes that hold the same parts, as under hybrid sharding, divide them.
    """
    boxes = {name: local_box(tensor) for name, tensor in tensors.items() if tensor.to_local().numel()}
    held = {name: tuple((side.start, side.stop) for side in box) for name, box in boxes.items()}
    everywhere: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everywhere, held)
    mine = {}
    for number, name in enumerate(tensors):
        holders = [rank for rank, theirs in enumerate(everywhere) if name in held and theirs.get(name) == held[name]]
        if holders and holders[number % len(holders)] == dist.get_rank():
            mine[name] = tuple(begin for begin, _ in held[name])
    return mine

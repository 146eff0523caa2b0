"""Norm, scaling and clipping of gradients that may be sharded (DTensor)."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, the same on every rank. Collective.

    Each rank takes the norm of its local parts. Squares are summed along the mesh dimensions over which a gradient is
    sharded; replicated parts count once. Gradients may lie on different meshes, as under tensor parallelism.
    """
    square = torch.zeros((), device=gradients[0].device if gradients else None)
    for layout, parts in _by_layout(gradients).items():
        part_square = torch.nn.utils.get_total_norm(parts).square()
        if layout is not None:
            mesh, placements = layout
            for dimension, placement in enumerate(placements):
                assert not placement.is_partial(), "gradient has not been reduced"
                if not placement.is_replicate():
                    dist.all_reduce(part_square, group=mesh.get_group(dimension))
        square = square + part_square
    return square.sqrt()


def scale(gradients: Sequence[Tensor], factor: float) -> None:
    """Multiply every gradient by `factor`, in place."""
    torch._foreach_mul_([_local(gradient) for gradient in gradients], factor)


def clamp(gradients: Sequence[Tensor], limit: float) -> None:
    """Clip every element to [−limit, limit], in place."""
    for gradient in gradients:
        _local(gradient).clamp_(-limit, limit)


def _by_layout(
    gradients: Sequence[Tensor],
) -> dict[tuple[DeviceMesh, tuple[Placement, ...]] | None, list[Tensor]]:
    by_layout: dict[tuple[DeviceMesh, tuple[Placement, ...]] | None, list[Tensor]] = {}
    for gradient in gradients:
        layout = (gradient.device_mesh, gradient.placements) if isinstance(gradient, DTensor) else None
        by_layout.setdefault(layout, []).append(_local(gradient))
    return by_layout


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor

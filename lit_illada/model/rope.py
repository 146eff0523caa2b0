"""Rotary position embeddings: queries and keys are rotated by angles proportional to the position.

Shapes: B rows, T tokens per row, H heads, D head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rotation:
    """Cosines and sines of the angles of every position, (B, T, 1, D/2) float32 each.

    A class and not a tuple, because FSDP casts tensors in the arguments of a block, and bfloat16 angles are too coarse
    for large positions.
    """

    cos: Tensor
    sin: Tensor


def rotation(position_ids_BT: Tensor, head_dim: int, theta: float) -> Rotation:
    """The angles are position · theta^(−2i/D) for i < D/2 (RoFormer, arXiv 2104.09864)."""
    exponents = torch.arange(0, head_dim, 2, device=position_ids_BT.device, dtype=torch.float32) / head_dim
    angles = position_ids_BT[:, :, None, None].float() * theta**-exponents
    return Rotation(angles.cos(), angles.sin())


def rotate(heads_BTHD: Tensor, by: Rotation) -> Tensor:
    """Rotates the pairs (i, i + D/2), the half-rotation layout; float32 inside, the input's dtype outside."""
    first, second = heads_BTHD.chunk(2, dim=-1)
    rotated = torch.cat((first * by.cos - second * by.sin, second * by.cos + first * by.sin), dim=-1)
    return rotated.to(heads_BTHD.dtype)

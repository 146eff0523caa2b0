"""Draws masks: each token independently with probability t (Bernoulli), or exactly k tokens of a row or block.

Exact-k has the expected loss of Bernoulli masking for every density and weight, and no more variance (see
`exact_k.py`). The exception is a fixed ratio r: exact-k then masks ⌈r·L⌉ of L tokens, as BERT does, with the weight at
that ratio. That objective differs from masking each token with probability r by O(1/L).

Shapes: B rows, T tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_illada.objective.blocks import count_in_block, is_block_start, offsets
from lit_illada.objective.config import MaskDraw
from lit_illada.objective.distribution import MaskRatio
from lit_illada.objective.exact_k import draw_counts
from lit_illada.objective.weighting import Weighting


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks of a batch. Ratios, densities and weights are those of rows, (B,), or of each token's block, (B, T)."""

    is_masked: Tensor
    """(B, T) bool."""
    mask_ratio: Tensor
    """float64, the ratio drawn, or k/L."""
    density: Tensor
    """float64, divisor of the weight under importance correction: p(t) with Bernoulli masks; with exact-k that of the
    conditional weight, or 1 without the correction."""
    weight: Tensor | None = None
    """float64, weight of the summed loss of a row or block; None: w(mask_ratio)."""

    def with_complement(self, is_maskable_BT: Tensor) -> "Masks":
        """2·B rows: the masks, then their complements within the maskable tokens. joint.py derives the density."""
        complement_BT = is_maskable_BT & ~self.is_masked
        return Masks(
            torch.cat([self.is_masked, complement_BT]),
            torch.cat([self.mask_ratio, 1 - self.mask_ratio]),
            torch.cat([self.density, self.density]),
        )


def draw_masks(
    mask_draw: MaskDraw,
    mask_ratio: MaskRatio,
    weighting: Weighting,
    u: Tensor,
    noise_BT: Tensor,
    is_maskable_BT: Tensor,
    blocks_BT: Tensor | None = None,
    is_corrected: bool = True,
) -> Masks:
    """Draws a mask ratio per row, or per block, from `mask_ratio`, and masks among the maskable tokens.

    u, noise_BT: uniform numbers in (0, 1), for the ratios, (B,) or with blocks (B, T), and for the tokens.
    is_corrected: whether the weight will be divided by the density.
    """
    if mask_draw is MaskDraw.BERNOULLI:
        t = mask_ratio.quantile(u)
        is_masked_BT = (noise_BT < (t[:, None] if blocks_BT is None else t)) & is_maskable_BT
        return Masks(is_masked_BT, t, mask_ratio.density(t))
    length = is_maskable_BT.sum(1) if blocks_BT is None else count_in_block(is_maskable_BT, blocks_BT)
    # a row without maskable tokens is treated as of length 1: its values stay finite, and no token uses them
    if mask_ratio.has_density:
        k, weight, density = draw_counts(mask_ratio, weighting, u, length, is_corrected)
    else:
        k, weight, density = num_masked(mask_ratio.quantile(u), length), None, torch.ones_like(u)
    ratio = k.clamp(min=1) / length.clamp(min=1).double()
    return Masks(exactly_k(k, noise_BT, is_maskable_BT, blocks_BT), ratio, density, weight)


def num_masked(t_B: Tensor, length_B: Tensor) -> Tensor:
    """⌈t·L⌉, int64 of the arguments' shape, in 1…L; 0 where L is 0. With t uniform, k is uniform on 1…L."""
    product_B = t_B * length_B
    # in floating point 0.07 · 100 is slightly above 7, and ceil would give 8
    k_B = (product_B * (1 - 4e-16)).ceil().long()
    return torch.minimum(k_B.clamp(min=1), length_B)


def exactly_k(k: Tensor, noise_BT: Tensor, is_maskable_BT: Tensor, blocks_BT: Tensor | None = None) -> Tensor:
    """(B, T) bool: the k maskable tokens of each row or block with the smallest noise, a uniform subset of size k.

    k: (B,) of the rows, or (B, T) of each token's block.
    """
    order_BT = noise_BT.masked_fill(~is_maskable_BT, 2.0).argsort(dim=1)
    if blocks_BT is None:
        is_chosen_BT = torch.arange(noise_BT.shape[1], device=noise_BT.device) < k[:, None]
    else:
        # a stable sort by block puts the tokens of a block, by noise, into the columns of the block
        order_BT = order_BT.gather(1, blocks_BT.gather(1, order_BT).argsort(dim=1, stable=True))
        is_chosen_BT = offsets(is_block_start(blocks_BT)) < k
    return torch.zeros_like(is_maskable_BT).scatter(1, order_BT, is_chosen_BT)

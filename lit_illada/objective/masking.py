"""Draws masks: each token independently with probability t (Bernoulli), or exactly k tokens of a row.

Exact-k has the expected loss of Bernoulli masking for every density and weight, and no more variance (see
`exact_k.py`). The exception is a fixed ratio r: exact-k then masks ⌈r·L⌉ of L tokens, as BERT does, with the weight at
that ratio. That objective differs from masking each token with probability r by O(1/L).

Shapes: B rows, T tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_illada.objective.config import MaskDraw
from lit_illada.objective.distribution import MaskRatio
from lit_illada.objective.exact_k import draw_counts
from lit_illada.objective.weighting import Weighting


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks of a batch."""

    is_masked: Tensor
    """(B, T) bool."""
    mask_ratio: Tensor
    """(B,) float64, the ratio drawn, or k/L."""
    density: Tensor
    """(B,) float64, divisor of the weight under importance correction."""
    weight: Tensor | None = None
    """(B,) float64, weight of the summed loss of a row; None: w(mask_ratio)."""

    def with_complement(self, is_maskable_BT: Tensor) -> "Masks":
        """2·B rows: the masks, then their complements within the maskable tokens. joint.py derives the density."""
        complement_BT = is_maskable_BT & ~self.is_masked
        return Masks(
            torch.cat([self.is_masked, complement_BT]),
            torch.cat([self.mask_ratio, 1 - self.mask_ratio]),
            self.density.repeat(2),
        )


def draw_masks(
    mask_draw: MaskDraw,
    mask_ratio: MaskRatio,
    weighting: Weighting,
    u_B: Tensor,
    noise_BT: Tensor,
    is_maskable_BT: Tensor,
) -> Masks:
    """Draws a mask ratio per row from `mask_ratio`, and masks among the maskable tokens.

    u_B, noise_BT: uniform numbers in (0, 1), for the ratios and for the tokens.
    """
    if mask_draw is MaskDraw.BERNOULLI:
        t_B = mask_ratio.quantile(u_B)
        is_masked_BT = (noise_BT < t_B[:, None]) & is_maskable_BT
        return Masks(is_masked_BT, t_B, mask_ratio.density(t_B))
    length_B = is_maskable_BT.sum(1)
    # a row without maskable tokens is treated as of length 1: its values stay finite, and no token uses them
    if mask_ratio.has_density:
        k_B, weight_B, density_B = draw_counts(mask_ratio, weighting, u_B, length_B)
    else:
        k_B, weight_B, density_B = num_masked(mask_ratio.quantile(u_B), length_B), None, torch.ones_like(u_B)
    ratio_B = k_B.clamp(min=1) / length_B.clamp(min=1).double()
    return Masks(exactly_k(k_B, noise_BT, is_maskable_BT), ratio_B, density_B, weight_B)


def num_masked(t_B: Tensor, length_B: Tensor) -> Tensor:
    """(B,) int64: ⌈t·L⌉, in 1…L; 0 where L is 0. With t uniform, k is uniform on 1…L."""
    product_B = t_B * length_B
    # in floating point 0.07 · 100 is slightly above 7, and ceil would give 8
    k_B = (product_B * (1 - 4e-16)).ceil().long()
    return torch.minimum(k_B.clamp(min=1), length_B)


def exactly_k(k_B: Tensor, noise_BT: Tensor, is_maskable_BT: Tensor) -> Tensor:
    """(B, T) bool: the k maskable tokens of each row with the smallest noise, a uniform subset of size k."""
    order_BT = noise_BT.masked_fill(~is_maskable_BT, 2.0).argsort(dim=1)
    is_chosen_BT = torch.arange(noise_BT.shape[1], device=noise_BT.device) < k_B[:, None]
    return torch.zeros_like(is_maskable_BT).scatter(1, order_BT, is_chosen_BT)

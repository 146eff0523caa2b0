"""Masks: each token independently with probability t (Bernoulli), or exactly k of a row's tokens.

Exact-k has Bernoulli's expected loss for every density and weight, and never more variance; `exact_k.py` derives it.
The exception is a fixed ratio r: exact-k then masks ⌈r·L⌉ of L tokens, as BERT does, with the weight at that ratio,
which is another objective than masking each with probability r (they differ by O(1/L)).

Shapes: B rows, T tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_illada.objective.config import MaskDraw
from lit_illada.objective.exact_k import draw_counts
from lit_illada.objective.mask_ratio import MaskRatio
from lit_illada.objective.weighting import Weighting


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks of a batch.

    is_masked: (B, T) bool. mask_ratio: (B,) float64, the ratio drawn, or k/L. density: (B,) float64, divisor of the
    weight under importance correction. weight: (B,) float64, weight of the row's masked sum; None: w(mask_ratio).
    """

    is_masked: Tensor
    mask_ratio: Tensor
    density: Tensor
    weight: Tensor | None = None

    def with_complement(self, is_maskable_BT: Tensor) -> "Masks":
        """The masks, then those that mask the other maskable tokens: 2·B rows. Why p stays is in joint.py."""
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
    """Masks with ratios drawn from `mask_ratio`. Nothing unmaskable is ever masked.

    u_B, noise_BT: uniform numbers, of the rows' ratios and of the tokens.
    """
    if mask_draw is MaskDraw.BERNOULLI:
        t_B = mask_ratio.quantile(u_B)
        is_masked_BT = (noise_BT < t_B[:, None]) & is_maskable_BT
        return Masks(is_masked_BT, t_B, mask_ratio.density(t_B))
    length_B = is_maskable_BT.sum(1)
    # a row with nothing maskable counts as one of length 1: its numbers stay finite and no token uses them
    if mask_ratio.has_density:
        k_B, weight_B, density_B = draw_counts(mask_ratio, weighting, u_B, length_B)
    else:
        k_B, weight_B, density_B = num_masked(mask_ratio.quantile(u_B), length_B), None, torch.ones_like(u_B)
    ratio_B = k_B.clamp(min=1) / length_B.clamp(min=1).double()
    return Masks(exactly_k(k_B, noise_BT, is_maskable_BT), ratio_B, density_B, weight_B)


def num_masked(t_B: Tensor, length_B: Tensor) -> Tensor:
    """(B,) int64: ⌈t·L⌉, in 1…L; 0 where L is 0. With t uniform, k is uniform on 1…L."""
    product_B = t_B * length_B
    # 0.07 · 100 is a rounding above 7, and would become 8.
    k_B = (product_B * (1 - 4e-16)).ceil().long()
    return torch.minimum(k_B.clamp(min=1), length_B)


def exactly_k(k_B: Tensor, noise_BT: Tensor, is_maskable_BT: Tensor) -> Tensor:
    """(B, T) bool: the k maskable tokens of each row with the smallest noise."""
    order_BT = noise_BT.masked_fill(~is_maskable_BT, 2.0).argsort(dim=1)
    is_chosen_BT = torch.arange(noise_BT.shape[1], device=noise_BT.device) < k_B[:, None]
    return torch.zeros_like(is_maskable_BT).scatter(1, order_BT, is_chosen_BT)

"""Which tokens are masked, given a row's ratio? Each by its own coin (Bernoulli), or exactly k of them.

Exact-k is Bernoulli with its luck taken out: k = ⌈t·L⌉ of the row's L maskable tokens. With p uniform and weight 1/t
the two have the same mean (its weight is then L/k, k uniform on 1…L) and exact-k never has more variance. With another
w the means differ by O(1/L), since w is then taken at k/L.

Shapes: B rows, T tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_illada.objective.config import MaskDraw
from lit_illada.objective.mask_ratio import MaskRatio


@dataclass(frozen=True, eq=False)
class Masks:
    """is_masked: (B, T) bool. mask_ratio, density: (B,) float64, the ratio used and how densely it is drawn."""

    is_masked: Tensor
    mask_ratio: Tensor
    density: Tensor

    def with_complement(self, is_maskable_BT: Tensor) -> "Masks":
        """The masks, then those that mask the other maskable tokens: 2·B rows. Why p stays is in joint.py."""
        complement_BT = is_maskable_BT & ~self.is_masked
        return Masks(
            torch.cat([self.is_masked, complement_BT]),
            torch.cat([self.mask_ratio, 1 - self.mask_ratio]),
            self.density.repeat(2),
        )


def draw_masks(
    mask_draw: MaskDraw, mask_ratio: MaskRatio, t_B: Tensor, noise_BT: Tensor, is_maskable_BT: Tensor
) -> Masks:
    """Masks for ratios `t_B` drawn from `mask_ratio`. noise_BT: uniform numbers. Nothing unmaskable is ever masked."""
    if mask_draw is MaskDraw.BERNOULLI:
        return Masks((noise_BT < t_B[:, None]) & is_maskable_BT, t_B, mask_ratio.density(t_B))
    length_B = is_maskable_BT.sum(1)
    k_B = num_masked(t_B, length_B)
    # A row with nothing maskable is told as one of length 1: its numbers stay finite and no token ever asks for them.
    length_B, k_filled_B = length_B.clamp(min=1), k_B.clamp(min=1)
    mass_B = mask_ratio.cdf(k_filled_B / length_B.double()) - mask_ratio.cdf((k_filled_B - 1) / length_B.double())
    return Masks(exactly_k(k_B, noise_BT, is_maskable_BT), k_filled_B / length_B.double(), length_B * mass_B)


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

"""Random masks of the estimators: the objective's counter-based numbers, keyed by number of the masks, completion, draw
and position.

Every draw is a function of its key, so the policy, the rollout policy and the reference are scored under the same
masks, whatever rows share their batch, and no generator is reset. Shapes: S sequences, W tokens per sequence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_illada.objective.masking import exactly_k, num_masked
from lit_illada.objective.noise import Purpose, uniform
from lit_illada.runtime.counter_rng import GOLDEN, mix


@dataclass(frozen=True, eq=False)
class MaskNoise:
    """The masks of one scoring of completions."""

    seed: int
    """Seed of the run."""
    mask_number: int
    """Equal numbers give equal masks; `AlignmentConfig.mask_number` counts them over rollouts and updates."""
    noise_ids: Tensor
    """(S,) int64, of the completions."""
    num_columns: int
    """W."""

    def uniform_for_ratio(self, draw: int) -> Tensor:
        """(S,) float64 in (0, 1), which a quantile function turns into mask ratios or counts."""
        return uniform(self.seed, Purpose.ALIGNMENT_RATIO, self._streams(draw))

    def block(self, draw: int) -> Tensor:
        """(S,) float64 in (0, 1), which chooses a block."""
        return uniform(self.seed, Purpose.ALIGNMENT_BLOCK, self._streams(draw))

    def tokens(self, draw: int) -> Tensor:
        """(S, W) float64 in (0, 1)."""
        return self._by_token(Purpose.ALIGNMENT_MASK, draw)

    def context(self, draw: int) -> Tensor:
        """(S, W) float64 in (0, 1), which masks tokens of the context."""
        return self._by_token(Purpose.ALIGNMENT_CONTEXT, draw)

    @staticmethod
    def num_masked(u_S: Tensor, length_S: Tensor) -> Tensor:
        """(S,) int64: k = ⌈u·L⌉, uniform on 1…L."""
        return num_masked(u_S, length_S)

    def exactly(self, k_S: Tensor, is_maskable_SW: Tensor, draw: int) -> Tensor:
        """(S, W) bool: k of the maskable tokens of each sequence, every subset equally likely."""
        return exactly_k(k_S, self.tokens(draw), is_maskable_SW)

    def complementary(
        self, low: float, high: float, is_maskable_SW: Tensor, draw: int
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Bernoulli masks of the maskable tokens with ratio t uniform on [low, high], and their complements: two pairs
        of (S, W) bool and (S,) float64 ratios t and 1 − t."""
        ratio_S = low + (high - low) * self.uniform_for_ratio(draw)
        is_masked_SW = (self.tokens(draw) < ratio_S[:, None]) & is_maskable_SW
        return (is_masked_SW, ratio_S), (is_maskable_SW & ~is_masked_SW, 1 - ratio_S)

    def _by_token(self, purpose: Purpose, draw: int) -> Tensor:
        positions_W = torch.arange(self.num_columns, device=self.noise_ids.device)
        return uniform(self.seed, purpose, self._streams(draw), positions_W)

    def _streams(self, draw: int) -> Tensor:
        """(S,) int64: a random stream per completion, number of the masks and draw."""
        masks_S = mix(torch.full_like(self.noise_ids, self.mask_number) + GOLDEN)
        return mix(mix(masks_S + draw) + self.noise_ids)

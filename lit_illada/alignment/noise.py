"""Random masks of the estimators: the objective's counter-based numbers, keyed by update, completion, draw, position.

Every draw is a function of its key, so the policy, the rollout policy and the reference are scored under the same
masks, whatever rows share their batch, and no generator is reset. Shapes: S sequences, W tokens per sequence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_illada.objective.config import MaskDraw
from lit_illada.objective.mask_ratio import Band
from lit_illada.objective.masking import Masks, draw_masks, exactly_k, num_masked
from lit_illada.objective.noise import Purpose, uniform
from lit_illada.objective.weighting import Elbo
from lit_illada.runtime.counter_rng import GOLDEN, mix


@dataclass(frozen=True, eq=False)
class MaskNoise:
    """The masks of one scoring of completions."""

    seed: int
    """Seed of the run."""
    update: int
    """Number of the masks: equal numbers give equal masks."""
    noise_ids: Tensor
    """(S,) int64, of the completions."""
    num_columns: int
    """W."""

    def ratio(self, draw: int) -> Tensor:
        """(S,) float64 in (0, 1)."""
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

    def complementary(self, low: float, high: float, is_maskable_SW: Tensor, draw: int) -> Masks:
        """2·S Bernoulli masks of the maskable tokens with ratio t uniform on [low, high], then their complements."""
        ratio = Band(epsilon=low, low=low, high=high)
        u_S, tokens_SW = self.ratio(draw), self.tokens(draw)
        masks = draw_masks(MaskDraw.BERNOULLI, ratio, Elbo(), u_S, tokens_SW, is_maskable_SW)
        return masks.with_complement(is_maskable_SW)

    def _by_token(self, purpose: Purpose, draw: int) -> Tensor:
        positions_W = torch.arange(self.num_columns, device=self.noise_ids.device)
        return uniform(self.seed, purpose, self._streams(draw), positions_W)

    def _streams(self, draw: int) -> Tensor:
        """(S,) int64: a random stream per completion, update and draw."""
        update_S = mix(torch.full_like(self.noise_ids, self.update) + GOLDEN)
        return mix(mix(update_S + draw) + self.noise_ids)

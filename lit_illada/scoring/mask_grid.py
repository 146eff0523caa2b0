"""The fixed masks under which likelihoods are bounded, and the scores of rows under given masks.

Two models are compared on the same inputs: draw d of D takes k from the d-th of D equal strata, and the rows step
through a stratum by the golden ratio, so the grid is even over k for every number of rows. With block diffusion L and k
are those of a block; the blocks of a row rotate the row's position within the strata, so that a draw is even over k
within a row too.

Shapes: B rows, T tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_illada.batch import TokenBatch
from lit_illada.objective.blocks import count_in_block, in_blocks
from lit_illada.objective.joint import rotate
from lit_illada.objective.loss import NoisyBatch, RatioBins, ScoreFn
from lit_illada.objective.masking import exactly_k, num_masked
from lit_illada.objective.noise import Purpose, golden_steps, random_bits, uniform


@dataclass(frozen=True)
class MaskGrid:
    """Fixed masks, each a function of (seed, row id, draw)."""

    num_draws: int = 8  # masks per row
    seed: int = 0
    block_length: int | None = None  # tokens per block of block diffusion; None: the whole row

    def masks(self, batch: TokenBatch, draw: int) -> Tensor:
        """(B, T) bool: k of the L maskable tokens of each row or block, k from stratum `draw`; row_ids number rows."""
        assert 0 <= draw < self.num_draws
        ids = batch.row_ids
        offset_B = random_bits(self.seed, Purpose.VALIDATION_RATIO, torch.zeros_like(ids))
        u_B = (draw + golden_steps(offset_B, ids)) / self.num_draws
        positions_T = torch.arange(batch.input_ids.shape[1], device=ids.device)
        noise_BT = uniform(self.seed, Purpose.VALIDATION_MASK, ids * self.num_draws + draw, positions_T)
        return self._masks(u_B, noise_BT, batch.is_maskable, in_blocks(batch, self.block_length).layout.blocks)

    def masks_of_row(self, row_id: int, length: int) -> Tensor:
        """(num_draws, length) bool: all draws of one row whose tokens are all maskable."""
        draws_D = torch.arange(self.num_draws)
        ids_D = torch.full_like(draws_D, row_id)
        offset_D = random_bits(self.seed, Purpose.VALIDATION_RATIO, torch.zeros_like(draws_D))
        u_D = (draws_D + golden_steps(offset_D, ids_D)) / self.num_draws
        noise_DT = uniform(self.seed, Purpose.VALIDATION_MASK, ids_D * self.num_draws + draws_D, torch.arange(length))
        is_maskable_DT = torch.ones(self.num_draws, length, dtype=torch.bool)
        blocks_DT = (
            None if self.block_length is None else (torch.arange(length) // self.block_length).expand_as(noise_DT)
        )
        return self._masks(u_D, noise_DT, is_maskable_DT, blocks_DT)

    def _masks(self, u_B: Tensor, noise_BT: Tensor, is_maskable_BT: Tensor, blocks_BT: Tensor | None) -> Tensor:
        if blocks_BT is None:
            return exactly_k(num_masked(u_B, is_maskable_BT.sum(1)), noise_BT, is_maskable_BT)
        k_BT = num_masked(rotate(u_B, blocks_BT), count_in_block(is_maskable_BT, blocks_BT))
        return exactly_k(k_BT, noise_BT, is_maskable_BT, blocks_BT)


@dataclass(frozen=True, eq=False)
class RowScores:
    """Scores of validation rows."""

    nll: Tensor
    """(B,) float64, nats/token of the row."""
    num_tokens: Tensor
    """(B,) int64, maskable tokens; rows of 0 do not count."""
    weight: Tensor
    """(B, T) float64, weight of each token in the row's bound (L/k of its row or block where masked), averaged over
    the draws; adds up to num_tokens."""
    weighted_nll: Tensor
    """(B, T) float64, weight times cross-entropy, averaged over the draws; adds up to num_tokens·nll."""
    bins: RatioBins
    """Sums by mask ratio."""


def mask_batch(batch: TokenBatch, is_masked_BT: Tensor, mask_token_id: int) -> NoisyBatch:
    """The batch with exactly these tokens masked; the mask ratio of a row, or of a block of the layout, is k/L."""
    k, length = (_count(part, batch.layout.blocks) for part in (is_masked_BT, batch.is_maskable))
    mask_ratio = k / length.clamp(min=1).double()
    return NoisyBatch(
        noisy_ids=batch.input_ids.masked_fill(is_masked_BT, mask_token_id),
        layout=batch.layout,
        is_masked=is_masked_BT,
        targets=batch.input_ids[is_masked_BT],
        is_maskable=batch.is_maskable,
        mask_ratio=mask_ratio,
        density=torch.ones_like(mask_ratio),
    )


def score_rows(score: ScoreFn, noisy: NoisyBatch) -> RowScores:
    """Σ (L/k)·S over the blocks of each row, per token; without blocks the mean over its masked tokens, S/k."""
    scores, blocks_BT = noisy.scored_by(score), noisy.layout.blocks
    nll_BT, k = noisy.spread(scores.nll).double(), _count(noisy.is_masked, blocks_BT).clamp(min=1)
    length_B = noisy.is_maskable.sum(1)
    weight_BT = noisy.is_masked * noisy.per_token(_count(noisy.is_maskable, blocks_BT) / k.double())
    weighted_nll_BT = weight_BT * nll_BT
    nll_B = nll_BT.sum(1) / k if blocks_BT is None else weighted_nll_BT.sum(1) / length_B.clamp(min=1)
    return RowScores(nll_B, length_B, weight_BT, weighted_nll_BT, RatioBins.of(scores, noisy))


def _count(is_true_BT: Tensor, blocks_BT: Tensor | None) -> Tensor:
    """True tokens of each row, (B,), or of each token's block, (B, T)."""
    return is_true_BT.sum(1) if blocks_BT is None else count_in_block(is_true_BT, blocks_BT)

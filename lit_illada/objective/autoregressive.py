"""Next-token prediction, the causal baseline, on the same tokens that the diffusion bound counts.

Shapes: B rows, T tokens, M predicted tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lit_illada.batch import TokenBatch, TokenScores
from lit_illada.objective.config import AutoregressiveObjectiveConfig
from lit_illada.objective.loss import LossSum, NoisyBatch, RatioBins, normalise


class AutoregressiveObjective(nn.Module):
    """Mean cross-entropy of the next token."""

    def __init__(self, config: AutoregressiveObjectiveConfig, eos_token_id: int) -> None:
        super().__init__()
        self.config = config
        self.eos_token_id = eos_token_id

    def corrupt(self, batch: TokenBatch, progress: float = 0.0) -> NoisyBatch:
        """Deterministic: `shift_right`."""
        return shift_right(batch, self.eos_token_id)

    def loss(self, scores: TokenScores, noisy: NoisyBatch) -> LossSum:
        """Σ_i CE_i over the maskable tokens, and the count of the normaliser."""
        factor, count = normalise(self.config.normaliser, noisy)
        return LossSum((noisy.spread(scores.nll) * factor.float()).sum(), count, RatioBins.of(scores, noisy))

    def end_step(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """No state to update."""


def shift_right(batch: TokenBatch, eos_token_id: int) -> NoisyBatch:
    """Inputs shifted right by one, so that position i predicts token i; EOS precedes the first token of each segment.

    All maskable tokens are predicted, including the first ones, so a likelihood covers the same tokens as the diffusion
    bound. mask_ratio and density are 1: curves by mask ratio show all tokens in the last bin.
    """
    shifted_BT = batch.input_ids.roll(1, dims=1)
    one_B = torch.ones(len(batch.row_ids), dtype=torch.float64, device=batch.row_ids.device)
    return NoisyBatch(
        noisy_ids=shifted_BT.masked_fill(batch.layout.position_ids == 0, eos_token_id),
        layout=batch.layout,
        is_masked=batch.is_maskable,
        targets=batch.input_ids[batch.is_maskable],
        is_maskable=batch.is_maskable,
        mask_ratio=one_B,
        density=one_B,
    )

"""Proposals: a token for each masked position, with confidence, margin and entropy.

Shapes: B rows, L tokens of the block, M masked tokens in row-major order, V vocabulary.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lit_illada.generation.draws import RowDraws


@dataclass(frozen=True, eq=False)
class Proposals:
    """A token for every masked position of a block, and the measures of certainty that commit rules rank by.

    The measures are computed on first access: (B, L) float64, 0 at positions that are not masked.
    """

    token_ids: Tensor
    """(B, L) int64, undefined where a position is not masked."""
    is_masked: Tensor
    """(B, L) bool."""
    logits: Tensor
    """(M, V) float32 or float64, after controls, without temperature."""

    @cached_property
    def confidence(self) -> Tensor:
        """Probability of the proposed token."""
        return self._spread(self._probability_M)

    @cached_property
    def margin(self) -> Tensor:
        """Probability of the proposed token minus that of the most probable other token; may be negative."""
        runner_up_M = self._others_MV.amax(-1).double()
        return self._spread(self._probability_M - (runner_up_M - self._exact_MV.logsumexp(-1)).exp())

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy of the model's distribution, nats; log V where the proposed token has confidence 0."""
        lse_M = self._exact_MV.logsumexp(-1)
        probs_MV = (self._exact_MV - lse_M[:, None]).exp()
        entropy_M = lse_M - torch.where(probs_MV > 0, probs_MV * self._exact_MV, 0.0).sum(-1)
        most = math.log(self.logits.shape[1])
        return self._spread(entropy_M.clamp(0, most).masked_fill(self._probability_M == 0, most))

    @cached_property
    def _proposed_M1(self) -> Tensor:
        return self.token_ids[self.is_masked][:, None]

    @cached_property
    def _exact_MV(self) -> Tensor:
        return self.logits.double()

    @cached_property
    def _others_MV(self) -> Tensor:
        return self.logits.scatter(1, self._proposed_M1, -torch.inf)

    @cached_property
    def _probability_M(self) -> Tensor:
        """Probability as 1 / (1 + odds against the token), which resolves values near 1 even in float32."""
        proposed_M = self.logits.gather(1, self._proposed_M1)[:, 0]
        return 1 / (1 + (self._others_MV.logsumexp(-1) - proposed_M).double().exp())

    def _spread(self, values_M: Tensor) -> Tensor:
        return values_M.new_zeros(self.is_masked.shape).masked_scatter(self.is_masked, values_M)


def propose(
    logits_MV: Tensor,
    is_masked_BL: Tensor,
    draws: RowDraws,
    *,
    temperature: float,
    top_p: float,
    uncertain_token_ids: Tensor,
) -> Proposals:
    """Samples proposals from logits, which the float64 noise of a temperature above 0 promotes.

    With a temperature the token is argmax(logit + temperature · Gumbel noise) over the nucleus of the
    distribution at that temperature, in float64 because the tail of float32 noise is too coarse (arXiv 2409.02908).
    Certainty is measured on the logits without temperature. uncertain_token_ids: tokens with confidence 0.
    """
    if temperature == 0:
        token_ids_M = logits_MV.argmax(-1)
    else:
        nucleus_MV = logits_MV if top_p == 1 else nucleus(logits_MV, temperature, top_p)
        uniform_MV = draws.each(is_masked_BL.sum(-1).tolist(), logits_MV.shape[1])
        token_ids_M = (nucleus_MV - temperature * uniform_MV.log().neg().log()).argmax(-1)
    if len(uncertain_token_ids):
        logits_MV = logits_MV.index_fill(1, uncertain_token_ids, -torch.inf)
    token_ids_BL = torch.zeros_like(is_masked_BL, dtype=torch.int64).masked_scatter(is_masked_BL, token_ids_M)
    return Proposals(token_ids_BL, is_masked_BL, logits_MV)


def nucleus(logits_MV: Tensor, temperature: float, top_p: float) -> Tensor:
    """Logits of the smallest set of tokens with total probability at least top_p at the temperature, −inf elsewhere
    (nucleus sampling, arXiv 1904.09751)."""
    sorted_MV, order_MV = (logits_MV / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    is_beyond_MV = sorted_MV.cumsum(-1) - sorted_MV >= top_p
    return logits_MV.masked_fill(torch.zeros_like(is_beyond_MV).scatter(1, order_MV, is_beyond_MV), -torch.inf)

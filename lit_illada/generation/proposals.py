"""What does the model propose for the masked tokens, and how sure is it?

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

    token_ids: (B, L) int64. is_masked: (B, L) bool; every value elsewhere is without meaning. logits: (M, V) float32 or
    float64, the model's, without temperature. The measures are made when first asked for: (B, L) float64, 0 at
    positions that are not masked.
    """

    token_ids: Tensor
    is_masked: Tensor
    logits: Tensor

    @cached_property
    def confidence(self) -> Tensor:
        """The proposed token's probability."""
        return self._spread(self._probability_M)

    @cached_property
    def margin(self) -> Tensor:
        """How far the proposed token's probability lies above that of the most probable other one; may be below 0."""
        runner_up_M = self._others_MV.amax(-1).double()
        return self._spread(self._probability_M - (runner_up_M - self._exact_MV.logsumexp(-1)).exp())

    @cached_property
    def entropy(self) -> Tensor:
        """Of the model's distribution, nats; the most there can be where the proposed token has no confidence."""
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
        """1 / (1 + the others' weight against its own): what tells two probabilities near 1 apart outlives float32."""
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
    """Proposals from logits, float64 where there is a temperature.

    With a temperature the token is argmax(logit + temperature · Gumbel noise) over the nucleus of the cooled
    distribution, in float64 because float32 noise is too coarse in its tail (arXiv 2409.02908); certainty is measured
    on the logits themselves. uncertain_token_ids: tokens that may be proposed but have no confidence.
    """
    if temperature == 0:
        token_ids_M = logits_MV.argmax(-1)
    else:
        kept_MV = logits_MV if top_p == 1 else nucleus(logits_MV, temperature, top_p)
        uniform_MV = draws.each(is_masked_BL.sum(-1).tolist(), logits_MV.shape[1])
        token_ids_M = (kept_MV - temperature * uniform_MV.log().neg().log()).argmax(-1)
    if len(uncertain_token_ids):
        logits_MV = logits_MV.index_fill(1, uncertain_token_ids, -torch.inf)
    token_ids_BL = torch.zeros_like(is_masked_BL, dtype=torch.int64).masked_scatter(is_masked_BL, token_ids_M)
    return Proposals(token_ids_BL, is_masked_BL, logits_MV)


def nucleus(logits_MV: Tensor, temperature: float, top_p: float) -> Tensor:
    """The logits of the fewest tokens that together have at least probability top_p at the temperature; −inf elsewhere
    (arXiv 1904.09751)."""
    sorted_MV, order_MV = (logits_MV / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    is_beyond_MV = sorted_MV.cumsum(-1) - sorted_MV >= top_p
    return logits_MV.masked_fill(torch.zeros_like(is_beyond_MV).scatter(1, order_MV, is_beyond_MV), -torch.inf)

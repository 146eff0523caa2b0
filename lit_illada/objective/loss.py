"""What is a loss here? A sum and a count. The caller adds both over ranks and micro-batches, then divides, once a step.

A mean taken anywhere earlier would be a weight in disguise: the masked-token mean of one row is S/k ≈ the 1/t
objective, that of a large batch ≈ the flat one. So a normaliser is a named count, never a micro-batch's own mean.

Shapes: B rows, T tokens, M masked tokens, S segments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lit_illada.batch import Layout, TokenBatch, TokenScores
from lit_illada.objective.config import Normaliser

NUM_RATIO_BINS = 10


@dataclass(frozen=True, eq=False)
class NoisyBatch:
    """A corrupted batch.

    noisy_ids: (B, T) int64, what the model sees.
    is_masked: (B, T) bool, what it must predict.
    targets: (M,) int64, the clean tokens there, row-major.
    is_maskable: (B, T) bool.
    mask_ratio: (B,) float64, t.
    density: (B,) float64, p(t): divisor of the weight under importance correction.
    weight: (B,) float64, weight of the row's masked sum; None: that of the objective's weighting at mask_ratio.
    """

    noisy_ids: Tensor
    layout: Layout
    is_masked: Tensor
    targets: Tensor
    is_maskable: Tensor
    mask_ratio: Tensor
    density: Tensor
    weight: Tensor | None = None

    def spread(self, values_M: Tensor) -> Tensor:
        """(B, T) float32: the masked tokens' values at their places, 0 elsewhere. Differentiable, also when M is 0."""
        zeros_BT = torch.zeros(self.is_masked.shape, dtype=torch.float32, device=self.is_masked.device)
        return zeros_BT.masked_scatter(self.is_masked, values_M.float())


@dataclass(frozen=True, eq=False)
class RatioBins:
    """Unweighted sums over the masked tokens by mask ratio, (10,) float64 each; bin j is (j/10, (j+1)/10]."""

    nll: Tensor
    num_correct: Tensor
    num_masked: Tensor

    @classmethod
    def of(cls, scores: TokenScores, noisy: NoisyBatch) -> "RatioBins":
        bin_B = (noisy.mask_ratio * NUM_RATIO_BINS).ceil().long().clamp(1, NUM_RATIO_BINS) - 1
        bins = torch.arange(NUM_RATIO_BINS, device=bin_B.device)
        # (10, B). A product, where an atomic add would make CUDA's sums depend on the order of its threads.
        is_in_bin = (bin_B == bins[:, None]).double()
        per_row = [noisy.spread(scores.nll.detach()), noisy.spread(scores.is_correct), noisy.is_masked]
        return cls(*(is_in_bin @ values_BT.double().sum(1) for values_BT in per_row))

    def __add__(self, other: "RatioBins") -> "RatioBins":
        return RatioBins(self.nll + other.nll, self.num_correct + other.num_correct, self.num_masked + other.num_masked)


@dataclass(frozen=True, eq=False)
class LossSum:
    """sum: () float32, differentiable. count: () float64. bins: for the curves, detached."""

    sum: Tensor
    count: Tensor
    bins: RatioBins


class Objective(Protocol):
    """What the training needs of an objective."""

    def corrupt(self, batch: TokenBatch, progress: float = 0.0) -> NoisyBatch: ...

    def loss(self, scores: TokenScores, noisy: NoisyBatch) -> LossSum: ...

    def end_step(self, reduce: Callable[[Tensor], Tensor]) -> None: ...


def normalise(normaliser: Normaliser, noisy: NoisyBatch) -> tuple[Tensor, Tensor]:
    """The factor on each token's loss, broadcastable to (B, T), and the count to divide by, () float64."""
    match normaliser:
        case Normaliser.TOKENS:
            return torch.ones_like(noisy.mask_ratio[:1, None]), noisy.is_maskable.sum().double()
        case Normaliser.MASKED:
            return torch.ones_like(noisy.mask_ratio[:1, None]), noisy.is_masked.sum().double()
        case Normaliser.SEQUENCES:
            length_B = noisy.is_maskable.sum(1)
            return 1 / length_B.clamp(min=1)[:, None], (length_B > 0).sum().double()
        case Normaliser.RESPONSE:
            segment_BT = noisy.layout.segment_ids() - 1
            num_segments = len(noisy.layout.cu_seqlens) - 1
            length_S = torch.bincount(segment_BT[noisy.is_maskable], minlength=num_segments)
            return 1 / length_S.clamp(min=1)[segment_BT], (length_S > 0).sum().double()

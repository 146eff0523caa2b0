"""Losses as a sum and a count, which the training step adds over ranks and micro-batches and divides once.

An earlier mean would act as a weight: the masked-token mean of one row is S/k, close to the 1/t objective, that of a
large batch is close to the flat one. A normaliser is therefore a named count, never the mean of a micro-batch.

Shapes: B rows, T tokens, M masked tokens, S segments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from lit_illada.batch import Layout, TokenBatch, TokenScores
from lit_illada.objective.config import Normaliser

NUM_RATIO_BINS = 10

ScoreFn = Callable[[Tensor, Layout, Tensor, Tensor], TokenScores]
"""(noisy_ids (B, T), layout, select (B, T) bool, targets (M,)) -> scores of the M targets. The model itself is one."""


@dataclass(frozen=True, eq=False)
class NoisyBatch:
    """A corrupted batch. Ratios, densities and weights are those of rows, (B,), or of each token's block, (B, T)."""

    noisy_ids: Tensor
    """(B, T) int64, input of the model; block diffusion appends the clean rows."""
    layout: Layout
    """Segments of the rows, and their blocks for block diffusion."""
    is_masked: Tensor
    """(B, T) bool, tokens to predict."""
    targets: Tensor
    """(M,) int64, clean tokens at the masked positions, row-major."""
    is_maskable: Tensor
    """(B, T) bool, tokens that the objective may mask."""
    mask_ratio: Tensor
    """float64, t."""
    density: Tensor
    """float64, divisor of the weight under importance correction: p(t) with Bernoulli masks; with exact-k that of the
    conditional weight, or 1 without the correction."""
    weight: Tensor | None = None
    """float64, weight of the summed loss of a row or block; None: the weighting at mask_ratio."""

    @cached_property
    def positions(self) -> Tensor:
        """(M,) int64, positions of the masked tokens in the flattened (B, T), ascending.

        A boolean index, or the backward pass of masked_scatter, would make the CPU wait for the device to learn M.
        """
        return torch.nonzero_static(self.is_masked.flatten(), size=len(self.targets))[:, 0]

    def scored_by(self, score: ScoreFn) -> TokenScores:
        """Scores of the targets. With blocks the model reads rows [noisy | clean], and the noisy half is scored."""
        if self.layout.blocks is None:
            return score(self.noisy_ids, self.layout, self.is_masked, self.targets)
        clean_ids = self.noisy_ids.masked_scatter(self.is_masked, self.targets)
        select = torch.nn.functional.pad(self.is_masked, (0, clean_ids.shape[1]))
        return score(torch.cat([self.noisy_ids, clean_ids], 1), self.layout.with_clean_copy(), select, self.targets)

    def per_ratio(self, values_BT: Tensor) -> Tensor:
        """Values in the shape of mask_ratio: summed over the rows, (B,), or with blocks unchanged, (B, T)."""
        return values_BT.sum(1) if self.mask_ratio.dim() == 1 else values_BT

    def per_token(self, values: Tensor) -> Tensor:
        """Values in the shape of mask_ratio that broadcast to (B, T)."""
        return values[:, None] if values.dim() == 1 else values

    def spread(self, values_M: Tensor) -> Tensor:
        """(B, T) float32: values of masked tokens at their positions, 0 elsewhere. Differentiable, also for M = 0."""
        zeros = torch.zeros(self.is_masked.numel(), dtype=torch.float32, device=self.is_masked.device)
        return zeros.index_copy(0, self.positions, values_M.float()).view(self.is_masked.shape)


@dataclass(frozen=True, eq=False)
class RatioBins:
    """Unweighted sums over the masked tokens by mask ratio, (10,) float64 each; bin j is (j/10, (j+1)/10]."""

    nll: Tensor
    """Cross-entropy in nats."""
    num_correct: Tensor
    """Tokens whose argmax is the target."""
    num_masked: Tensor

    @classmethod
    def of(cls, scores: TokenScores, noisy: NoisyBatch) -> "RatioBins":
        bin_N = (noisy.mask_ratio.flatten() * NUM_RATIO_BINS).ceil().long().clamp(1, NUM_RATIO_BINS) - 1
        bins = torch.arange(NUM_RATIO_BINS, device=bin_N.device)
        # (10, N), N = B or B·T; a matrix product is deterministic, unlike the atomic adds of a scatter on CUDA
        is_in_bin = (bin_N == bins[:, None]).double()
        values = [noisy.spread(scores.nll.detach()), noisy.spread(scores.is_correct), noisy.is_masked]
        return cls(*(is_in_bin @ noisy.per_ratio(values_BT.double()).flatten() for values_BT in values))

    def __add__(self, other: "RatioBins") -> "RatioBins":
        return RatioBins(self.nll + other.nll, self.num_correct + other.num_correct, self.num_masked + other.num_masked)


@dataclass(frozen=True, eq=False)
class LossSum:
    """The loss of a micro-batch, not yet divided."""

    sum: Tensor
    """() float32, differentiable."""
    count: Tensor
    """() float64, of the normaliser."""
    bins: RatioBins
    """Loss and accuracy by mask ratio, detached."""


class Objective(Protocol):
    """Interface of a training objective."""

    def corrupt(self, batch: TokenBatch, progress: float = 0.0) -> NoisyBatch:
        """Masks a batch. progress: fraction of training done, 0 to 1."""

    def loss(self, scores: TokenScores, noisy: NoisyBatch) -> LossSum:
        """Weighted loss of the model's scores of the targets."""

    def end_step(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Updates state after an optimizer step. reduce: sums a tensor over the ranks."""


def normalise(normaliser: Normaliser, noisy: NoisyBatch) -> tuple[Tensor, Tensor]:
    """(factor on each token's loss, broadcastable to (B, T); count to divide by, () float64)."""
    match normaliser:
        case Normaliser.TOKENS:
            return noisy.mask_ratio.new_ones(1, 1), noisy.is_maskable.sum().double()
        case Normaliser.MASKED:
            return noisy.mask_ratio.new_ones(1, 1), noisy.is_masked.sum().double()
        case Normaliser.SEQUENCES:
            length_B = noisy.is_maskable.sum(1)
            return 1 / length_B.clamp(min=1)[:, None], (length_B > 0).sum().double()
        case Normaliser.RESPONSE:
            segment_BT = noisy.layout.segment_ids() - 1
            num_segments = len(noisy.layout.cu_seqlens) - 1
            # bincount would make the CPU wait for the device to learn the largest index
            none_S = segment_BT.new_zeros(num_segments)
            length_S = none_S.index_add(0, segment_BT.flatten(), noisy.is_maskable.flatten().to(none_S.dtype))
            return 1 / length_S.clamp(min=1)[segment_BT], (length_S > 0).sum().double()

"""Estimators that score tokens in the states of a sampler's trajectory, or from left to right.

Shapes: S sequences, W tokens per sequence, L scored tokens of a sequence, T denoising steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lit_illada.alignment.views import Estimator, View, masked_context, ones
from lit_illada.errors import UserError, require
from lit_illada.runtime.lazy import Tensor, torch

if TYPE_CHECKING:
    from lit_illada.alignment.completions import Completions
    from lit_illada.alignment.noise import MaskNoise


@dataclass(frozen=True)
class Trajectory(Estimator):
    """Each token in the state in which the rollout committed it. CJ-GRPO, arXiv 2509.23924; TraceRL, 2509.06949.

    Exact for the token part of the sampler's policy with shrink = 1, no cache and no guidance: the probability of the
    tokens given the order of positions. The probability of the order is left out.
    """

    shrink: int = 1
    """Steps merged into one state, that before the first of them; above 1 an approximation with fewer passes."""
    needs_steps: ClassVar[bool] = True
    is_random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.shrink >= 1, "alignment.estimator.shrink", self.shrink, "1 or more")

    def num_views(self, completions: Completions) -> int:
        return int(self.segments(completions)[completions.is_scored].max()) + 1 if completions.is_scored.any() else 1

    def views(self, completions: Completions, noise: MaskNoise, masked_prompt: float) -> Iterator[View]:
        segment_SW = self.segments(completions)
        prompt_SW = masked_context(completions, noise, 0, masked_prompt)
        for segment in range(self.num_views(completions)):
            selected_SW = completions.is_scored & (segment_SW == segment)
            is_masked = (completions.is_canvas & (segment_SW >= segment)) | prompt_SW
            last_block_S = None if completions.blocks is None else (completions.blocks * selected_SW).amax(1)
            yield View(is_masked, selected_SW, ones(completions), last_block=last_block_S)

    def segments(self, completions: Completions) -> Tensor:
        """(S, W) int64: state of each token, from 0; −1 before the first scored one."""
        return self.merge(*_ranks(completions))

    def merge(self, rank_SW: Tensor, num_steps_S: Tensor) -> Tensor:
        """(S, W) int64: the segments of ranked steps."""
        return rank_SW.div(self.shrink, rounding_mode="floor")


@dataclass(frozen=True)
class StepMerge(Trajectory):
    """As `trajectory`, with the steps divided into num_segments parts of equal length. d2, arXiv 2509.21474.

    Bias: tokens are scored in the state before the first step of their part. One part is `mean_field`, as many as steps
    are exact. Steps that commit only unscored tokens are not counted; such tokens are visible once committed.
    """

    num_segments: int = 16
    """Parts, one pass each."""

    def __post_init__(self) -> None:
        require(self.num_segments >= 1, "alignment.estimator.num_segments", self.num_segments, "1 or more")
        require(self.shrink == 1, "alignment.estimator.shrink", self.shrink, "1 with step_merge")

    def merge(self, rank_SW: Tensor, num_steps_S: Tensor) -> Tensor:
        steps_S1 = num_steps_S[:, None].clamp(min=1)
        return (rank_SW * steps_S1.clamp(max=self.num_segments)).div(steps_S1, rounding_mode="floor")


@dataclass(frozen=True)
class LeftToRight(Estimator):
    """log p(y_i | earlier tokens, later ones masked): an exact chain rule, L passes. JustGRPO, arXiv 2601.15165.

    Exact for a rollout with block length 1 on a fixed canvas; otherwise the likelihood of another policy.
    """

    is_random: ClassVar[bool] = False

    def num_views(self, completions: Completions) -> int:
        return max(int(completions.num_scored.max()), 1)

    def views(self, completions: Completions, noise: MaskNoise, masked_prompt: float) -> Iterator[View]:
        rank_SW = completions.is_scored.cumsum(1) - 1
        prompt_SW = masked_context(completions, noise, 0, masked_prompt)
        for index in range(self.num_views(completions)):
            is_masked = completions.is_canvas & ((rank_SW >= index) | ~completions.is_scored)
            yield View(is_masked | prompt_SW, completions.is_scored & (rank_SW == index), ones(completions))


def _ranks(completions: Completions) -> tuple[Tensor, Tensor]:
    """((S, W) int64 number of scored steps up to each token's step, minus 1; (S,) int64 number of scored steps).

    A scored step is one that commits a scored token.
    """
    if completions.steps is None:
        raise UserError(
            "alignment.estimator scores the states of the rollout, which are unknown: the completions have no trace, "
            "or the rollout may mask tokens again; choose an estimator that needs no states, such as elbo"
        )
    steps_SW = completions.steps
    num_steps = int(steps_SW.max()) + 1
    is_scored_ST = torch.zeros(len(steps_SW), num_steps, dtype=torch.int64, device=steps_SW.device)
    is_scored_ST.scatter_reduce_(1, steps_SW, completions.is_scored.long(), "amax")
    return is_scored_ST.cumsum(1).gather(1, steps_SW) - 1, is_scored_ST.sum(1)

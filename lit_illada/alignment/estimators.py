"""Estimators of log p(completion | prompt) under a masked-diffusion model, as masked states and weights.

An estimator lists views of a completion: a masked state, the tokens scored in it, and their weights. The score of
token i is Σ_views weight · log p(y_i | state), averaged over draws; `scores.py` runs the model. Views depend on the
completion and on counter-based noise only, never on the model, so the policy, the rollout policy and the reference are
scored on the same views. A model that predicts the next token shifts its own logits (`model.predicts_next`).

To add one, write a frozen dataclass, a row in `ESTIMATORS` and a YAML file. Shapes: S sequences, W tokens per sequence,
L scored tokens of a sequence, k masked ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lit_illada.errors import UserError, require
from lit_illada.runtime.lazy import Tensor, torch

if TYPE_CHECKING:
    from lit_illada.alignment.completions import Completions
    from lit_illada.alignment.noise import MaskNoise


@dataclass(frozen=True, eq=False)
class View:
    """A masked state of all sequences, and the tokens that are scored in it."""

    is_masked: Tensor
    """(S, W) bool, tokens that the model does not see."""
    is_selected: Tensor
    """(S, W) bool, masked tokens to score."""
    weight: Tensor
    """(S, W) or (S, 1) float64, factor on log p of the selected tokens."""
    draw: int = 0
    """Draw to which the view belongs; the views of one draw make a complete estimate."""
    last_block: Tensor | None = None
    """(S,) int64, last block that exists in this state; None: the whole canvas."""


@dataclass(frozen=True)
class Estimator(ABC):
    """Views of completions."""

    needs_steps: ClassVar[bool] = False
    """Whether the states come from the rollout's trace."""
    is_random: ClassVar[bool] = True
    """Whether the masks of a completion are drawn."""

    @abstractmethod
    def num_views(self, completions: Completions) -> int:
        """Forward passes per scoring. All ranks must run equally many: pass the largest number to `score`."""

    @abstractmethod
    def views(self, completions: Completions, noise: MaskNoise, masked_prompt: float) -> Iterator[View]:
        """The views, `num_views` of them.

        masked_prompt: probability to mask a visible token of the context, which is the prompt, and for estimators by
        blocks the earlier blocks too.
        """

    def upper(self, log_prob_NSW: Tensor, weight_NSW: Tensor, is_selected_NSW: Tensor) -> Tensor | None:
        """(S, W) scores for completions of negative advantage; None: the same as for the others."""
        return None


@dataclass(frozen=True)
class MeanField(Estimator):
    """log p(y_i | all of y masked): one pass, tokens independent. d1, arXiv 2504.12216.

    Bias: the slice t = 1 of the bound, and exact only for independent tokens.
    """

    is_random: ClassVar[bool] = False

    def num_views(self, completions: Completions) -> int:
        return 1

    def views(self, completions: Completions, noise: MaskNoise, masked_prompt: float) -> Iterator[View]:
        is_masked = completions.is_canvas | _masked_prompt(completions, noise, 0, masked_prompt)
        yield View(is_masked, completions.is_scored, _one(completions))


@dataclass(frozen=True)
class Elbo(Estimator):
    """Exact-k bound: k uniform on 1…L, weight L/k. LLaDA, arXiv 2502.09992; VRPO, 2505.19223; BGPO, 2510.11683.

    Unbiased for the lower bound E_k[(L/k)·Σ_masked log p], the negative of the objective's loss.
    """

    num_draws: int = 1
    """Masks per completion, one pass each."""
    stratified: bool = True
    """Whether draw d of D takes k from the d-th of D equal parts of 1…L; only the variance changes."""

    def __post_init__(self) -> None:
        require(self.num_draws >= 1, "alignment.estimator.num_draws", self.num_draws, "1 or more")

    def num_views(self, completions: Completions) -> int:
        return self.num_draws

    def views(self, completions: Completions, noise: MaskNoise, masked_prompt: float) -> Iterator[View]:
        for draw in range(self.num_draws):
            u_S = _uniform(noise, draw, self.num_draws if self.stratified else 1)
            yield _exactly_k(completions, noise, draw, noise.num_masked(u_S, completions.num_scored), masked_prompt)


@dataclass(frozen=True)
class Coupled(Estimator):
    """A mask of k tokens and its complement, k uniform on 0…L, weights (L + 1)/2k and (L + 1)/2(L − k). ESPO,
    arXiv 2512.03759.

    Unbiased for the same bound as `elbo`; every token is scored once per pair, unless k is 0 or L.
    """

    num_pairs: int = 1
    """Pairs per completion, two passes each."""

    def __post_init__(self) -> None:
        require(self.num_pairs >= 1, "alignment.estimator.num_pairs", self.num_pairs, "1 or more")

    def num_views(self, completions: Completions) -> int:
        return 2 * self.num_pairs

    def views(self, completions: Completions, noise: MaskNoise, masked_prompt: float) -> Iterator[View]:
        length_S = completions.num_scored
        for draw in range(self.num_pairs):
            k_S = (_uniform(noise, draw, self.num_pairs) * (length_S + 1)).long().clamp(max=length_S)
            first_SW = noise.exactly(k_S, completions.is_scored, draw)
            prompt_SW = _masked_prompt(completions, noise, draw, masked_prompt)
            for part_SW, part_k_S in ((first_SW, k_S), (completions.is_scored & ~first_SW, length_S - k_S)):
                weight_S = (length_S + 1) / (2 * part_k_S.clamp(min=1).double())
                yield View(part_SW | _tail(completions) | prompt_SW, part_SW, weight_S[:, None], draw)


@dataclass(frozen=True)
class CoupledFull(Estimator):
    """Half of a fully masked pass, and half of a pair of complementary Bernoulli masks with weights 1/t and 1/(1 − t),
    t uniform on [low, high]. Coupled-GRPO, DiffuCoder, arXiv 2506.20639.

    Bias: not a bound; the expected weights of a token add up to 3/2. The published code draws one t per batch, this
    one per completion.
    """

    low: float = 0.2
    """Smallest mask ratio."""
    high: float = 0.8
    """Largest mask ratio."""

    def __post_init__(self) -> None:
        allowed = "0 < low < high < 1"
        require(0 < self.low < self.high < 1, "alignment.estimator.low, high", (self.low, self.high), allowed)

    def num_views(self, completions: Completions) -> int:
        return 3

    def views(self, completions: Completions, noise: MaskNoise, masked_prompt: float) -> Iterator[View]:
        prompt_SW = _masked_prompt(completions, noise, 0, masked_prompt)
        yield View(completions.is_canvas | prompt_SW, completions.is_scored, _one(completions) / 2)
        masks = noise.complementary(self.low, self.high, completions.is_scored, 0)
        halves = zip(masks.is_masked.chunk(2), masks.mask_ratio.chunk(2), strict=True)
        for part_SW, ratio_S in halves:
            yield View(part_SW | _tail(completions) | prompt_SW, part_SW, 0.5 / ratio_S[:, None])


@dataclass(frozen=True)
class Quadrature(Estimator):
    """Gauss–Legendre quadrature of the bound over t: Σ_n w_n (L/k_n)·Σ_masked log p. GDPO, arXiv 2510.08554.

    k_n = round(t_n·L), at least 1, and the weight is L/k_n, since 1/t_n with rounded counts would be biased for short
    completions. Bias: that of the quadrature over k, with num_nodes nodes and counts rounded.
    """

    num_nodes: int = 3
    """Nodes, one pass each."""

    def __post_init__(self) -> None:
        require(self.num_nodes >= 1, "alignment.estimator.num_nodes", self.num_nodes, "1 or more")

    def num_views(self, completions: Completions) -> int:
        return self.num_nodes

    def views(self, completions: Completions, noise: MaskNoise, masked_prompt: float) -> Iterator[View]:
        x_N, weight_N = np.polynomial.legendre.leggauss(self.num_nodes)
        for node, (x, weight) in enumerate(zip(x_N.tolist(), weight_N.tolist(), strict=True)):
            k_S = (completions.num_scored * ((x + 1) / 2)).round().long().clamp(min=1)
            yield _exactly_k(completions, noise, node, k_S, masked_prompt, weight / 2, shared_draw=0)


@dataclass(frozen=True)
class BlockElbo(Estimator):
    """A block drawn uniformly, exact-k inside it, earlier blocks clean, later blocks masked. SPG, arXiv 2510.09541.

    Unbiased for the sum over the blocks of each block's bound given the earlier blocks, with the later ones masked. The
    published code takes the mean over the masked tokens, which differs by a constant where blocks are equally long.
    """

    block_length: int = 32
    """Tokens of a block; the rollout's."""
    num_draws: int = 2
    """Masks per completion, one pass each."""

    def __post_init__(self) -> None:
        require(self.block_length >= 1, "alignment.estimator.block_length", self.block_length, "1 or more")
        require(self.num_draws >= 1, "alignment.estimator.num_draws", self.num_draws, "1 or more")

    def num_views(self, completions: Completions) -> int:
        return self.num_draws

    def views(self, completions: Completions, noise: MaskNoise, masked_prompt: float) -> Iterator[View]:
        canvas_SW, scored_SW = completions.is_canvas, completions.is_scored
        block_SW = (canvas_SW.cumsum(1) - 1).div(self.block_length, rounding_mode="floor")
        num_blocks_S = (block_SW * scored_SW).amax(1) + 1
        for draw in range(self.num_draws):
            chosen_S1 = (noise.block(draw) * num_blocks_S).long()[:, None]
            is_here_SW = scored_SW & (block_SW == chosen_S1)
            length_S = is_here_SW.sum(1)
            k_S = noise.num_masked(noise.ratio(draw), length_S)
            part_SW = noise.exactly(k_S, is_here_SW, draw)
            is_context_SW = completions.is_prompt | (scored_SW & (block_SW < chosen_S1))
            is_masked = part_SW | (canvas_SW & (block_SW > chosen_S1)) | _tail(completions)
            is_masked = is_masked | (is_context_SW & (noise.context(draw) < masked_prompt))
            weight_S = num_blocks_S * length_S / k_S.clamp(min=1).double()
            yield View(is_masked, part_SW, weight_S[:, None], draw)


@dataclass(frozen=True)
class EuboMix(Estimator):
    """`elbo` or `block_elbo`; for negative advantages mixed with an upper bound. SPG, arXiv 2510.09541.

    The upper bound is (1/b)·Σ_i log mean_draws[w·1[i masked]·p(y_i)^b] with w = L/k; tokens never masked are dropped.
    Scores of negative advantages: mix·upper + (1 − mix)·lower. Bias: the log of a mean over few draws lies below that
    of its expectation, and dropped tokens count 0.
    """

    block_length: int | None = 32
    """Tokens of a block; None: masks of the whole completion."""
    num_draws: int = 2
    """Masks per completion, one pass each."""
    exponent: float = 1.5
    """b, 1 or more; larger values are looser."""
    mix: float = 0.5
    """Weight of the upper bound; 1: only it."""

    def __post_init__(self) -> None:
        require(self.exponent >= 1, "alignment.estimator.exponent", self.exponent, "1 or more")
        require(0 <= self.mix <= 1, "alignment.estimator.mix", self.mix, "0 ≤ mix ≤ 1")
        _ = self._lower

    @property
    def _lower(self) -> Elbo | BlockElbo:
        if self.block_length is None:
            return Elbo(self.num_draws, stratified=False)
        return BlockElbo(self.block_length, self.num_draws)

    def num_views(self, completions: Completions) -> int:
        return self.num_draws

    def views(self, completions: Completions, noise: MaskNoise, masked_prompt: float) -> Iterator[View]:
        return self._lower.views(completions, noise, masked_prompt)

    def upper(self, log_prob_NSW: Tensor, weight_NSW: Tensor, is_selected_NSW: Tensor) -> Tensor:
        lower_SW = (weight_NSW * log_prob_NSW * is_selected_NSW).mean(0)
        # a finite stand-in for log 0 keeps the gradient of dropped tokens finite
        terms_NSW = torch.where(is_selected_NSW, weight_NSW.log() + self.exponent * log_prob_NSW, -1e30)
        log_mean_SW = terms_NSW.logsumexp(0) - float(np.log(self.num_draws))
        upper_SW = torch.where(is_selected_NSW.any(0), log_mean_SW / self.exponent, 0.0)
        return self.mix * upper_SW + (1 - self.mix) * lower_SW


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
        prompt_SW = _masked_prompt(completions, noise, 0, masked_prompt)
        for segment in range(self.num_views(completions)):
            selected_SW = completions.is_scored & (segment_SW == segment)
            is_masked = (completions.is_canvas & (segment_SW >= segment)) | prompt_SW
            last_block_S = None if completions.blocks is None else (completions.blocks * selected_SW).amax(1)
            yield View(is_masked, selected_SW, _one(completions), last_block=last_block_S)

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
        prompt_SW = _masked_prompt(completions, noise, 0, masked_prompt)
        for index in range(self.num_views(completions)):
            is_masked = completions.is_canvas & ((rank_SW >= index) | ~completions.is_scored)
            yield View(is_masked | prompt_SW, completions.is_scored & (rank_SW == index), _one(completions))


ESTIMATORS: dict[str, type[Estimator]] = {
    "mean_field": MeanField,
    "elbo": Elbo,
    "coupled": Coupled,
    "coupled_full": CoupledFull,
    "quadrature": Quadrature,
    "block_elbo": BlockElbo,
    "eubo_mix": EuboMix,
    "trajectory": Trajectory,
    "step_merge": StepMerge,
    "left_to_right": LeftToRight,
}


def _exactly_k(
    completions: Completions,
    noise: MaskNoise,
    draw: int,
    k_S: Tensor,
    masked_prompt: float,
    factor: float = 1.0,
    shared_draw: int | None = None,
) -> View:
    """k of the L scored tokens masked, with weight factor·L/k.

    shared_draw: draw to which the view belongs; None: that of its noise.
    """
    part_SW = noise.exactly(k_S, completions.is_scored, draw)
    is_masked = part_SW | _tail(completions) | _masked_prompt(completions, noise, draw, masked_prompt)
    weight_S = factor * completions.num_scored / k_S.clamp(min=1).double()
    return View(is_masked, part_SW, weight_S[:, None], draw if shared_draw is None else shared_draw)


def _uniform(noise: MaskNoise, draw: int, num_strata: int) -> Tensor:
    """(S,) float64 in (0, 1), in stratum `draw` of `num_strata`; one stratum: all of it."""
    u_S = noise.ratio(draw)
    return u_S if num_strata == 1 else (draw + u_S) / num_strata


def _tail(completions: Completions) -> Tensor:
    """(S, W) bool: tokens of the canvas that are not scored."""
    return completions.is_canvas & ~completions.is_scored


def _masked_prompt(completions: Completions, noise: MaskNoise, draw: int, probability: float) -> Tensor:
    if probability == 0:
        return torch.zeros_like(completions.is_prompt)
    return completions.is_prompt & (noise.context(draw) < probability)


def _one(completions: Completions) -> Tensor:
    """(S, 1) float64 ones."""
    return torch.ones(len(completions), 1, dtype=torch.float64, device=completions.ids.device)


def _ranks(completions: Completions) -> tuple[Tensor, Tensor]:
    """((S, W) int64 number of scored steps up to each token's step, minus 1; (S,) int64 number of scored steps).

    A scored step is one that commits a scored token.
    """
    if completions.steps is None:
        raise UserError(
            "alignment.estimator scores the states of the rollout, which are unknown: the completions have no trace, "
            "or the rollout masks tokens again; set generation/remask=none, or choose another estimator"
        )
    steps_SW = completions.steps
    num_steps = int(steps_SW.max()) + 1
    is_scored_ST = torch.zeros(len(steps_SW), num_steps, dtype=torch.int64, device=steps_SW.device)
    is_scored_ST.scatter_reduce_(1, steps_SW, completions.is_scored.long(), "amax")
    return is_scored_ST.cumsum(1).gather(1, steps_SW) - 1, is_scored_ST.sum(1)

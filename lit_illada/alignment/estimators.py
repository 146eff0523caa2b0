"""Estimators of log p(completion | prompt) under a masked-diffusion model, as masked states and weights.

An estimator lists views of a completion: a masked state, the tokens scored in it, and their weights. The score of
token i is Σ_views weight · log p(y_i | state), averaged over draws; `scores.py` runs the model. Views depend on the
completion and on counter-based noise only, never on the model, so the policy, the rollout policy and the reference are
scored on the same views. A model that predicts the next token shifts its own logits (`model.predicts_next`).

To add one, write a frozen dataclass, a row in `ESTIMATORS` and a YAML file. Shapes: S sequences, W tokens per sequence,
L scored tokens of a sequence, k masked ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lit_illada.alignment.trajectories import LeftToRight, StepMerge, Trajectory
from lit_illada.alignment.views import Estimator, View, masked_context, ones
from lit_illada.errors import require
from lit_illada.runtime.lazy import Tensor, torch

if TYPE_CHECKING:
    from lit_illada.alignment.completions import Completions
    from lit_illada.alignment.noise import MaskNoise


@dataclass(frozen=True)
class MeanField(Estimator):
    """log p(y_i | all of y masked): one pass, tokens independent. d1, arXiv 2504.12216.

    Bias: the slice t = 1 of the bound, and exact only for independent tokens.
    """

    is_random: ClassVar[bool] = False

    def num_views(self, completions: Completions) -> int:
        return 1

    def views(self, completions: Completions, noise: MaskNoise, masked_prompt: float) -> Iterator[View]:
        is_masked = completions.is_canvas | masked_context(completions, noise, 0, masked_prompt)
        yield View(is_masked, completions.is_scored, ones(completions))


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
            prompt_SW = masked_context(completions, noise, draw, masked_prompt)
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
        prompt_SW = masked_context(completions, noise, 0, masked_prompt)
        yield View(completions.is_canvas | prompt_SW, completions.is_scored, ones(completions) / 2)
        for part_SW, ratio_S in noise.complementary(self.low, self.high, completions.is_scored, 0):
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
    """Tokens of a block: generation.block_length, so that the states are those of the rollout."""
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
            k_S = noise.num_masked(noise.uniform_for_ratio(draw), length_S)
            part_SW = noise.exactly(k_S, is_here_SW, draw)
            is_context_SW = completions.is_prompt | (scored_SW & (block_SW < chosen_S1))
            is_masked = part_SW | (canvas_SW & (block_SW > chosen_S1)) | _tail(completions)
            is_masked = is_masked | (is_context_SW & (noise.context(draw) < masked_prompt))
            weight_S = num_blocks_S * length_S / k_S.clamp(min=1).double()
            yield View(is_masked, part_SW, weight_S[:, None], draw)


@dataclass(frozen=True)
class EuboMix(Estimator):
    """`elbo` or `block_elbo`; for negative advantages mixed with an upper bound. SPG, arXiv 2510.09541.

    The upper bound is (1/b)·Σ_i log mean_draws[w·1[i masked]·p(y_i)^b] with w = L/k. Tokens that no draw masks are
    dropped, and the sum is scaled from the others to all tokens, so that the mean over tokens is that over the masked
    ones. Scores of negative advantages: mix·upper + (1 − mix)·lower. Bias: the log of a mean over few draws lies below
    that of its expectation.
    """

    block_length: int | None = 32
    """Tokens of a block: generation.block_length; None: masks of the whole completion."""
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

    def upper(self, log_prob_NSW: Tensor, weight_NSW: Tensor, is_selected_NSW: Tensor, num_scored_S: Tensor) -> Tensor:
        lower_SW = (weight_NSW * log_prob_NSW * is_selected_NSW).mean(0)
        # a finite stand-in for log 0 keeps the gradient of dropped tokens finite
        terms_NSW = torch.where(is_selected_NSW, weight_NSW.log() + self.exponent * log_prob_NSW, -1e30)
        log_mean_SW = terms_NSW.logsumexp(0) - float(np.log(self.num_draws))
        is_masked_SW = is_selected_NSW.any(0)
        scale_S = num_scored_S / is_masked_SW.sum(1).clamp(min=1)
        upper_SW = torch.where(is_masked_SW, log_mean_SW / self.exponent, 0.0) * scale_S[:, None]
        return self.mix * upper_SW + (1 - self.mix) * lower_SW


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
    is_masked = part_SW | _tail(completions) | masked_context(completions, noise, draw, masked_prompt)
    weight_S = factor * completions.num_scored / k_S.clamp(min=1).double()
    return View(is_masked, part_SW, weight_S[:, None], draw if shared_draw is None else shared_draw)


def _uniform(noise: MaskNoise, draw: int, num_strata: int) -> Tensor:
    """(S,) float64 in (0, 1), in stratum `draw` of `num_strata`; one stratum: all of it."""
    u_S = noise.uniform_for_ratio(draw)
    return u_S if num_strata == 1 else (draw + u_S) / num_strata


def _tail(completions: Completions) -> Tensor:
    """(S, W) bool: tokens of the canvas that are not scored."""
    return completions.is_canvas & ~completions.is_scored

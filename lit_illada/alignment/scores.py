"""Scores of completions: runs the model on the views of an estimator and adds up weighted log-probabilities.

    noise = completions_noise(completions, seed, mask_number)
    scores = score(estimator, completions, model, noise, mask_token_id)      differentiable
    scores.token, scores.sequence

Shapes: S sequences, W tokens per sequence, D draws, N views, M selected tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_illada.alignment.completions import Completions, model_rows
from lit_illada.alignment.noise import MaskNoise
from lit_illada.alignment.views import Estimator, View
from lit_illada.batch import Layout, Movable, TokenScores
from lit_illada.objective.loss import ScoreFn
from lit_illada.scoring.model import LayoutLogitsFn


@dataclass(frozen=True, eq=False)
class Scores(Movable):
    """Scores of completions, in nats; 0 at tokens that are not scored."""

    by_draw: Tensor
    """(D, S, W), a complete estimate per draw; differentiable unless computed without gradients."""
    upper: Tensor | None
    """(S, W), scores of completions of negative advantage; None: those of `by_draw`."""

    @property
    def token(self) -> Tensor:
        """(S, W): mean over the draws."""
        return self.by_draw.mean(0)

    @property
    def sequence(self) -> Tensor:
        """(S,): estimates of log p(completion | prompt)."""
        return self.token.sum(1)

    def for_advantage(self, advantage_S: Tensor, per_draw: bool) -> Tensor:
        """(D, S, W), or (1, S, W) unless per_draw: the scores that a loss with these advantages uses."""
        if self.upper is not None:
            return torch.where(advantage_S[:, None] < 0, self.upper, self.token)[None]
        return self.by_draw if per_draw else self.token[None]

    def detach(self) -> "Scores":
        """Scores without their graph, to keep as those of the rollout policy or the reference."""
        return replace(self, by_draw=self.by_draw.detach(), upper=None if self.upper is None else self.upper.detach())

    def select(self, index: Tensor, width: int) -> "Scores":
        """The sequences at `index`, (N,) int64, with their first `width` columns, as `Completions.select` gives."""
        upper = None if self.upper is None else self.upper[index, :width]
        return replace(self, by_draw=self.by_draw[:, index, :width], upper=upper)

    def spread(self, index: Tensor, num: int, width: int) -> "Scores":
        """The inverse of `select`: these sequences at `index` of `num` sequences of `width` columns, 0 elsewhere."""

        def spread(values: Tensor) -> Tensor:
            zeros = values.new_zeros(*values.shape[:-2], num, width)
            return zeros.index_copy(-2, index, _padded(values, width))

        return replace(self, by_draw=spread(self.by_draw), upper=None if self.upper is None else spread(self.upper))

    @classmethod
    def join(cls, parts: Sequence["Scores"]) -> "Scores":
        """The scores of several batches in order; narrower ones are padded."""
        width = max(part.by_draw.shape[-1] for part in parts)
        uppers = [part.upper for part in parts if part.upper is not None]
        return cls(
            torch.cat([_padded(part.by_draw, width) for part in parts], 1),
            torch.cat([_padded(upper, width) for upper in uppers]) if uppers else None,
        )


def completions_noise(completions: Completions, seed: int, mask_number: int) -> MaskNoise:
    """The masks of this number of these completions. Equal numbers give the policy, the rollout policy and the
    reference equal masks."""
    return MaskNoise(seed, mask_number, completions.noise_ids, completions.token_ids.shape[1])


def score(
    estimator: Estimator,
    completions: Completions,
    score_fn: ScoreFn,
    noise: MaskNoise,
    mask_token_id: int,
    *,
    masked_prompt: float = 0.0,
    num_views: int | None = None,
    recompute: bool = False,
) -> Scores:
    """Scores of the completions under the model behind `score_fn`.

    Args:
        masked_prompt: probability to mask a visible token of the context.
        num_views: forward passes to run, at least the estimator's number; the additional ones score nothing. Ranks of
            a sharded model must run equally many.
        recompute: compute each view again in the backward pass, so that memory does not grow with their number.
    """
    views = list(padded_views(estimator, completions, noise, masked_prompt, num_views))
    compute = partial(checkpoint, view_log_prob, use_reentrant=False) if recompute else view_log_prob
    log_prob_NSW = torch.stack([compute(completions, view, score_fn, mask_token_id) for view in views])
    weight_NSW = torch.stack([view.weight.to(log_prob_NSW.dtype).expand(completions.token_ids.shape) for view in views])
    is_selected_NSW = torch.stack([view.is_selected for view in views])
    draw_N = torch.tensor([view.draw for view in views], device=log_prob_NSW.device)
    is_of_draw_DN = torch.arange(int(draw_N.max()) + 1, device=draw_N.device)[:, None] == draw_N
    weighted_NSW = weight_NSW * log_prob_NSW
    by_draw_DSW = torch.stack([weighted_NSW[is_of_draw_N].sum(0) for is_of_draw_N in is_of_draw_DN])
    upper = estimator.upper(log_prob_NSW, weight_NSW, is_selected_NSW, completions.num_scored)
    return Scores(by_draw_DSW, upper)


def padded_views(
    estimator: Estimator, completions: Completions, noise: MaskNoise, masked_prompt: float, num_views: int | None
) -> Iterator[View]:
    """The views of an estimator, and empty ones up to `num_views`."""
    own = estimator.num_views(completions)
    yield from estimator.views(completions, noise, masked_prompt)
    is_masked = completions.is_canvas
    nothing = View(is_masked, torch.zeros_like(is_masked), torch.zeros_like(noise.uniform_for_ratio(0))[:, None])
    for _ in range(own, num_views or own):
        yield nothing


def view_log_prob(completions: Completions, view: View, score_fn: ScoreFn, mask_token_id: int) -> Tensor:
    """(S, W): log p of the selected tokens, 0 elsewhere; one forward pass. Differentiable, also with none selected."""
    rows = model_rows(completions, view, mask_token_id)
    nll_M = score_fn(rows.noisy_ids, rows.layout, view.is_selected, rows.targets).nll
    zeros_SW = torch.zeros(view.is_selected.shape, dtype=nll_M.dtype, device=nll_M.device)
    return zeros_SW.masked_scatter(view.is_selected, -nll_M)


def rollout_policy(logits_fn: LayoutLogitsFn, temperature: float, mask_token_id: int) -> ScoreFn:
    """Scores under the policy that samples the rollout: logits divided by its temperature, no mask token.

    The logits of all selected tokens are held at once, unlike in the model's own scores.
    """

    def score_fn(noisy_ids: Tensor, layout: Layout, select: Tensor, targets: Tensor) -> TokenScores:
        logits_MV = logits_fn(noisy_ids, layout, select)
        logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32)) / temperature
        is_mask_V = torch.arange(logits_MV.shape[1], device=logits_MV.device) == mask_token_id
        logits_MV = logits_MV.masked_fill(is_mask_V, -torch.inf)
        nll_M = F.cross_entropy(logits_MV, targets, reduction="none")
        return TokenScores(nll_M, logits_MV.detach().argmax(-1) == targets)

    return score_fn


def _padded(values: Tensor, width: int) -> Tensor:
    return F.pad(values, (0, width - values.shape[-1]))

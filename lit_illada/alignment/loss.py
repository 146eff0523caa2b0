"""The policy loss of a micro-batch as a sum and a count, which the training step adds up and divides once.

    L = Σ_s v_s · [ mean over units of FORM(score, anchor, A) + β · mean over units of REG ] / Σ count

v_s and the count follow from the normaliser and are sums over completions, so the loss does not depend on how they are
divided into micro-batches and ranks. Completions of advantage 0 take part with a gradient of 0. Shapes: D draws,
S sequences, W tokens per sequence, U units.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_illada.alignment.completions import Completions
from lit_illada.alignment.config import AlignmentConfig, Normaliser
from lit_illada.alignment.forms import Anchor
from lit_illada.alignment.levels import Units
from lit_illada.alignment.regularisers import NoRegulariser
from lit_illada.alignment.scores import Scores


@dataclass(frozen=True, eq=False)
class PolicyLoss:
    """The loss of a micro-batch, not yet divided."""

    sum: Tensor
    """(), differentiable."""
    count: Tensor
    """() float64, of the normaliser."""
    stats: dict[str, Tensor]
    """(2,) float64 each, sum and count, detached: over units `clipped` (1 or 0) and `log_ratio` (score − anchor), over
    the regulariser's units `kl`, over completions `score` (nats)."""


@dataclass(frozen=True, eq=False)
class Frozen:
    """Stored scores of the frozen policies, under the same masks as the policy's."""

    old: Scores | None = None
    """Of the policy of the rollout; None: not needed, or the policy has not changed since."""
    ref: Scores | None = None
    """Of the reference."""

    def of(self, anchor: Anchor, scores: Scores) -> Scores | None:
        """The scores of a frozen policy. Without stored ones the old policy is the current one."""
        match anchor:
            case Anchor.OLD:
                return self.old or scores.detach()
            case Anchor.REF:
                assert self.ref is not None, "the loss needs the reference's scores"
                return self.ref
        return None


def policy_loss(
    config: AlignmentConfig,
    completions: Completions,
    scores: Scores,
    advantage_S: Tensor,
    frozen: Frozen,
    is_counted_S: Tensor | None = None,
    is_scored_S: Tensor | None = None,
) -> PolicyLoss:
    """The loss of scored completions.

    advantage_S: (S,), over whole groups; 1 and −1 alternating for pairs. is_counted_S: (S,) bool, completions that the
    normaliser counts; None: all. is_scored_S: (S,) bool, completions with scores, which the statistics cover; None:
    all.
    """
    units = Units.of(config.level, completions)
    score_DSU = units.sum(scores.for_advantage(advantage_S, config.per_draw))
    anchor = frozen.of(config.form.anchor, scores)
    anchor_DSU = None if anchor is None else units.sum(anchor.for_advantage(advantage_S, config.per_draw))
    advantage_S1 = advantage_S.to(score_DSU.dtype)[:, None]
    loss_SU = config.form(score_DSU, anchor_DSU, advantage_S1).mean(0)
    weight_SU = config.form.weight(score_DSU, anchor_DSU).mean(0) * units.is_unit
    if config.form.is_pair:
        weight_SU = weight_SU * (torch.arange(len(completions), device=weight_SU.device) % 2 == 0)[:, None]
    if is_counted_S is not None:
        weight_SU = weight_SU * is_counted_S[:, None]
    # units without a token have score 0, hence a loss that is not theirs
    loss_S = (loss_SU * (weight_SU > 0)).sum(1)
    factor_S, count = normalise(config.normaliser, weight_SU, completions.is_canvas.sum(1))
    penalty_S, kl = _penalty(config, completions, scores, advantage_S, frozen)
    total = (loss_S * factor_S + penalty_S * factor_S * weight_SU.sum(1)).sum()
    is_unit_SU = units.is_unit if is_scored_S is None else units.is_unit & is_scored_S[:, None]
    stats = {"score": _sum_and_count(scores.sequence, is_unit_SU.any(1)), "kl": kl}
    if anchor_DSU is not None:
        is_unit_DSU = is_unit_SU.expand_as(score_DSU)
        is_clipped_DSU = config.form.is_clipped(score_DSU, anchor_DSU, advantage_S1)
        stats["clipped"] = _sum_and_count(is_clipped_DSU, is_unit_DSU)
        stats["log_ratio"] = _sum_and_count(score_DSU - anchor_DSU, is_unit_DSU)
    return PolicyLoss(total, count, stats)


def normalise(normaliser: Normaliser, weight_SU: Tensor, num_canvas_S: Tensor) -> tuple[Tensor, Tensor]:
    """((S,) factor on the summed loss of each completion, () float64 count).

    weight_SU: weights of the units, 0 for those that do not count. num_canvas_S: tokens that the rollout wrote.
    """
    num_units_S = (weight_SU > 0).sum(1).clamp(min=1)
    # 1 for completions with units, 0 for others; of a form that divides by its ratios: their mean over the units
    mean_S = (weight_SU.sum(1) / num_units_S).double()
    one_S = torch.ones_like(weight_SU[:, 0])
    match normaliser:
        case Normaliser.UNITS:
            return one_S, weight_SU.sum(1).double().sum()
        case Normaliser.SEQUENCES:
            return one_S / num_units_S, mean_S.sum()
        case Normaliser.COMPLETIONS:
            return one_S, mean_S.sum()
        case Normaliser.CANVAS:
            return one_S, (num_canvas_S * mean_S).sum()


def _penalty(
    config: AlignmentConfig, completions: Completions, scores: Scores, advantage_S: Tensor, frozen: Frozen
) -> tuple[Tensor, Tensor]:
    """((S,) coefficient times the mean penalty of each completion's units, (2,) sum and count of the penalties)."""
    regulariser = config.regulariser
    if isinstance(regulariser, NoRegulariser):
        return torch.zeros_like(scores.sequence), torch.zeros(2, dtype=torch.float64, device=advantage_S.device)
    anchor = frozen.of(regulariser.anchor, scores)
    assert anchor is not None
    units = Units.of(regulariser.level, completions, "alignment.regulariser.level")
    # the divergence is that of the likelihood itself, whatever bound the sign of the advantage selects
    penalty_SU = regulariser(units.sum(scores.token), units.sum(anchor.token)) * units.is_unit
    if regulariser.divided_by_length:
        penalty_SU = penalty_SU * units.is_unit.sum(1, keepdim=True) / units.num_tokens.clamp(min=1)[:, None]
    mean_S = penalty_SU.sum(1) / units.is_unit.sum(1).clamp(min=1)
    return regulariser.coefficient * mean_S, _sum_and_count(penalty_SU, units.is_unit)


def _sum_and_count(values: Tensor, is_counted: Tensor) -> Tensor:
    """(2,) float64."""
    return torch.stack([(values.detach() * is_counted).double().sum(), is_counted.double().sum()])


def mismatch(scores: Scores, completions: Completions) -> Tensor:
    """(2,) float64, sum and count over tokens of log p at which the rollout committed a token minus its score.

    With `trajectory` scores the mean estimates KL(sampler ‖ scored policy): 0 without caches, guidance and temperature.
    """
    assert completions.log_confidence is not None
    return _sum_and_count(completions.log_confidence - scores.token, completions.is_scored)

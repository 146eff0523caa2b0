"""Forms of the policy loss: how the score of a unit, its score under a frozen policy and its advantage meet.

A unit is a token, a step or a sequence (`levels.py`). To add a form, write a frozen dataclass, a row in `FORMS` and a
YAML file. Shapes: D draws, S sequences, U units of a sequence; rho = exp(score − anchor), A the advantage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from lit_illada.errors import require
from lit_illada.runtime.lazy import Tensor, torch

# exp of a sum over a sequence overflows; beyond this the gradient of an unclipped ratio is 0
MAX_LOG_RATIO = 30.0


class Anchor(StrEnum):
    """The frozen policy that a loss compares with."""

    NONE = "none"  # none
    OLD = "old"  # the policy of the rollout
    REF = "ref"  # the initial policy, or a later one copied from the policy


@dataclass(frozen=True)
class Form(ABC):
    """The loss of a unit."""

    anchor: ClassVar[Anchor] = Anchor.OLD
    """The policy whose scores the form needs."""
    is_pair: ClassVar[bool] = False
    """Whether sequences 2p and 2p + 1 form one loss, which the unit of the first holds."""

    @property
    def weighs_by_score(self) -> bool:
        """Whether `weight` depends on the scores."""
        return False

    @abstractmethod
    def __call__(self, score_DSU: Tensor, anchor_DSU: Tensor | None, advantage_S1: Tensor) -> Tensor:
        """(D, S, U) losses.

        anchor_DSU: scores under the frozen policy; None if the form needs none. advantage_S1: (S, 1), A of each
        sequence, for all its units.
        """

    def is_clipped(self, score_DSU: Tensor, anchor_DSU: Tensor | None, advantage_S1: Tensor) -> Tensor:
        """(D, S, U) bool: whether clipping removes the unit's gradient."""
        return torch.zeros_like(score_DSU, dtype=torch.bool)

    def weight(self, score_DSU: Tensor, anchor_DSU: Tensor | None) -> Tensor:
        """(D, S, U) weight of each unit in the normaliser, without gradient; 1 unless the form normalises itself."""
        return torch.ones_like(score_DSU)


@dataclass(frozen=True)
class Clip(Form):
    """−min(rho·A, clip(rho, 1 − low, 1 + high)·A). PPO, arXiv 1707.06347; GRPO, 2402.03300.

    For A < 0 nothing bounds a large rho.
    """

    low: float = 0.2
    """1 − low is the smallest ratio with a gradient for A < 0."""
    high: float = 0.2
    """1 + high is the largest ratio with a gradient for A > 0."""

    def __post_init__(self) -> None:
        require(0 <= self.low < 1, "alignment.form.low", self.low, "0 ≤ low < 1")
        require(self.high >= 0, "alignment.form.high", self.high, "0 or more")

    def __call__(self, score_DSU: Tensor, anchor_DSU: Tensor | None, advantage_S1: Tensor) -> Tensor:
        ratio_DSU = ratio(score_DSU, anchor_DSU)
        clipped_DSU = ratio_DSU.clamp(1 - self.low, 1 + self.high)
        return -torch.minimum(ratio_DSU * advantage_S1, clipped_DSU * advantage_S1)

    def is_clipped(self, score_DSU: Tensor, anchor_DSU: Tensor | None, advantage_S1: Tensor) -> Tensor:
        ratio_DSU = ratio(score_DSU, anchor_DSU)
        is_high = (advantage_S1 > 0) & (ratio_DSU > 1 + self.high)
        return is_high | ((advantage_S1 < 0) & (ratio_DSU < 1 - self.low))


@dataclass(frozen=True)
class DualClip(Clip):
    """As `clip`; for A < 0 the loss is at most −most·A. Dual-clip PPO, arXiv 1912.09729."""

    most: float = 3.0
    """Largest ratio with a gradient for A < 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.most > 1, "alignment.form.most", self.most, "above 1")

    def __call__(self, score_DSU: Tensor, anchor_DSU: Tensor | None, advantage_S1: Tensor) -> Tensor:
        loss_DSU = super().__call__(score_DSU, anchor_DSU, advantage_S1)
        return torch.where(advantage_S1 < 0, torch.minimum(loss_DSU, -self.most * advantage_S1), loss_DSU)

    def is_clipped(self, score_DSU: Tensor, anchor_DSU: Tensor | None, advantage_S1: Tensor) -> Tensor:
        is_large = (advantage_S1 < 0) & (ratio(score_DSU, anchor_DSU) > self.most)
        return is_large | super().is_clipped(score_DSU, anchor_DSU, advantage_S1)


@dataclass(frozen=True)
class ClipAlways(Clip):
    """−clip(rho, 1 − low, 1 + high)·A, on both sides for either sign of A. StableDRL, arXiv 2603.06743."""

    self_normalised: bool = True
    """Divide by the sum of the clipped ratios instead of the number of units."""

    @property
    def weighs_by_score(self) -> bool:
        return self.self_normalised

    def __call__(self, score_DSU: Tensor, anchor_DSU: Tensor | None, advantage_S1: Tensor) -> Tensor:
        return -self._clipped(score_DSU, anchor_DSU) * advantage_S1

    def is_clipped(self, score_DSU: Tensor, anchor_DSU: Tensor | None, advantage_S1: Tensor) -> Tensor:
        ratio_DSU = ratio(score_DSU, anchor_DSU)
        return (ratio_DSU < 1 - self.low) | (ratio_DSU > 1 + self.high)

    def weight(self, score_DSU: Tensor, anchor_DSU: Tensor | None) -> Tensor:
        if not self.self_normalised:
            return torch.ones_like(score_DSU)
        return self._clipped(score_DSU, anchor_DSU).detach()

    def _clipped(self, score_DSU: Tensor, anchor_DSU: Tensor | None) -> Tensor:
        return ratio(score_DSU, anchor_DSU).clamp(1 - self.low, 1 + self.high)


@dataclass(frozen=True)
class LinearBound(Form):
    """−A·(1 + d) for A > 0 and −A·exp(d) for A < 0, d = score − anchor: an upper bound on −A·exp(d) whose mean over
    draws bounds that of the mean score, so each draw can be back-propagated alone. BGPO, arXiv 2510.11683.
    """

    most: float = 3.0
    """Largest exp(d) with a gradient for A < 0."""

    def __post_init__(self) -> None:
        require(self.most > 1, "alignment.form.most", self.most, "above 1")

    def __call__(self, score_DSU: Tensor, anchor_DSU: Tensor | None, advantage_S1: Tensor) -> Tensor:
        ratio_DSU = ratio(score_DSU, anchor_DSU).clamp(max=self.most)
        linear_DSU = 1 + (score_DSU - _given(anchor_DSU))
        return -advantage_S1 * torch.where(advantage_S1 < 0, ratio_DSU, linear_DSU)

    def is_clipped(self, score_DSU: Tensor, anchor_DSU: Tensor | None, advantage_S1: Tensor) -> Tensor:
        return (advantage_S1 < 0) & (ratio(score_DSU, anchor_DSU) > self.most)


@dataclass(frozen=True)
class Reinforce(Form):
    """−A·score, without a ratio. REINFORCE; SPG, arXiv 2510.09541."""

    anchor: ClassVar[Anchor] = Anchor.NONE

    def __call__(self, score_DSU: Tensor, anchor_DSU: Tensor | None, advantage_S1: Tensor) -> Tensor:
        return -advantage_S1 * score_DSU


@dataclass(frozen=True)
class WeightedNLL(Reinforce):
    """−w·score with weights w of either sign, such as `softmax` advantages. wd1, arXiv 2507.08838."""


@dataclass(frozen=True)
class Dpo(Form):
    """−log σ(β·[(score − ref of the chosen) − (score − ref of the rejected)]). DPO, arXiv 2305.18290; with bounds as
    scores VRPO, 2505.19223. Sequences 2p are chosen, with advantage 1; sequences 2p + 1 rejected, with −1.
    """

    beta: float = 0.2
    """β; larger values stay nearer to the reference."""
    anchor: ClassVar[Anchor] = Anchor.REF
    is_pair: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.beta > 0, "alignment.form.beta", self.beta, "above 0")

    def __call__(self, score_DSU: Tensor, anchor_DSU: Tensor | None, advantage_S1: Tensor) -> Tensor:
        signed_DSU = advantage_S1 * (score_DSU - _given(anchor_DSU))
        margin_DPU = self.beta * (signed_DSU[:, 0::2] + signed_DSU[:, 1::2])
        loss_DPU = torch.nn.functional.softplus(-margin_DPU)
        return torch.stack([loss_DPU, torch.zeros_like(loss_DPU)], 2).flatten(1, 2)


FORMS: dict[str, type[Form]] = {
    "clip": Clip,
    "dual_clip": DualClip,
    "clip_always": ClipAlways,
    "linear_bound": LinearBound,
    "reinforce": Reinforce,
    "weighted_nll": WeightedNLL,
    "dpo": Dpo,
}


def ratio(score_DSU: Tensor, anchor_DSU: Tensor | None) -> Tensor:
    """exp(score − anchor), finite."""
    return (score_DSU - _given(anchor_DSU)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _given(anchor_DSU: Tensor | None) -> Tensor:
    assert anchor_DSU is not None, "the form needs the scores of its anchor"
    return anchor_DSU

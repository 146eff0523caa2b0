"""Regularisers: estimates of the KL divergence of the policy from a frozen one, added to the loss.

With d = score − anchor of a completion that the policy sampled, the mean of each estimate is KL(policy ‖ anchor) (k1,
k3) or close to it where the two are near (k2): J. Schulman, "Approximating KL divergence", 2020. Their gradients
differ: see `KlEstimate`. To add a regulariser, write a frozen dataclass, a row in `REGULARISERS` and a YAML file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from lit_illada.alignment.forms import MAX_LOG_RATIO, Anchor
from lit_illada.alignment.levels import Level
from lit_illada.errors import require
from lit_illada.runtime.lazy import Tensor, torch


class KlEstimate(StrEnum):
    """Estimate of KL(policy ‖ anchor) from a sample of the policy."""

    K1 = "k1"  # d, with the gradient of k2, since its own has mean 0
    K2 = "k2"  # d²/2; the gradient d·∇score is that of KL(policy ‖ anchor), on policy
    K3 = "k3"  # exp(−d) + d − 1, never negative; the gradient is that of KL(anchor ‖ policy); explodes on sequences


@dataclass(frozen=True)
class Regulariser(ABC):
    """A penalty on each unit."""

    anchor: ClassVar[Anchor] = Anchor.NONE
    """The policy whose scores it needs."""
    coefficient: float = 0.0
    """Weight in the loss."""
    level: Level = Level.TOKEN
    """Units that are penalised."""
    divided_by_length: bool = False
    """Divide the penalty of a sequence by its number of tokens; changes nothing at the level of tokens."""

    @abstractmethod
    def __call__(self, score: Tensor, anchor: Tensor) -> Tensor:
        """Penalties without the coefficient, of the same shape."""


@dataclass(frozen=True)
class NoRegulariser(Regulariser):
    """No penalty."""

    def __post_init__(self) -> None:
        require(self.coefficient == 0, "alignment.regulariser.coefficient", self.coefficient, "0 with name=none")

    def __call__(self, score: Tensor, anchor: Tensor) -> Tensor:
        return torch.zeros_like(score)


@dataclass(frozen=True)
class KlRef(Regulariser):
    """KL from the reference."""

    anchor: ClassVar[Anchor] = Anchor.REF
    coefficient: float = 0.04
    """Weight in the loss."""
    estimate: KlEstimate = KlEstimate.K3
    """How it is estimated from a sample."""

    def __post_init__(self) -> None:
        require(self.coefficient >= 0, "alignment.regulariser.coefficient", self.coefficient, "0 or more")

    def __call__(self, score: Tensor, anchor: Tensor) -> Tensor:
        difference = score - anchor
        match self.estimate:
            case KlEstimate.K1:
                value = difference.detach()
                return value + value * (score - score.detach())
            case KlEstimate.K2:
                return difference.square() / 2
            case KlEstimate.K3:
                return (-difference).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() + difference - 1


@dataclass(frozen=True)
class KlOld(KlRef):
    """KL from the policy of the rollout. TraceRL, arXiv 2509.06949."""

    anchor: ClassVar[Anchor] = Anchor.OLD


REGULARISERS: dict[str, type[Regulariser]] = {"none": NoRegulariser, "kl_ref": KlRef, "kl_old": KlOld}

"""Advantages: how the rewards of a group of completions of one prompt become weights of their losses.

To add one, write a frozen dataclass, a row in `ADVANTAGES` and a YAML file. Shapes: P prompts, G completions of each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from lit_illada.errors import require
from lit_illada.runtime.lazy import Tensor, torch


@dataclass(frozen=True)
class Advantage(ABC):
    """A function of a group's rewards; exactly 0 for a group of equal rewards, which favours no completion."""

    def __call__(self, reward_PG: Tensor) -> Tensor:
        """(P, G) float64 advantages. reward_PG: the whole group, whatever micro-batch holds its members."""
        reward_PG = reward_PG.double()
        return torch.where(is_mixed(reward_PG)[:, None], self.of_mixed(reward_PG), 0.0)

    @abstractmethod
    def of_mixed(self, reward_PG: Tensor) -> Tensor:
        """(P, G) float64 advantages of groups of unequal rewards; finite for other groups."""


@dataclass(frozen=True)
class Centred(Advantage):
    """r − mean. Coupled-GRPO, arXiv 2506.20639; after Dr. GRPO, 2503.20783.

    The group's own reward is part of the mean, so the expected gradient is (G − 1)/G of the policy gradient.
    """

    def of_mixed(self, reward_PG: Tensor) -> Tensor:
        return reward_PG - reward_PG.mean(1, keepdim=True)


@dataclass(frozen=True)
class Standardised(Advantage):
    """(r − mean)/(std + ε), std with G − 1. GRPO, arXiv 2402.03300. Gives nearly decided groups more weight."""

    epsilon: float = 1e-4
    """Added to the standard deviation."""

    def __post_init__(self) -> None:
        require(self.epsilon > 0, "alignment.advantage.epsilon", self.epsilon, "above 0")

    def of_mixed(self, reward_PG: Tensor) -> Tensor:
        centred_PG = reward_PG - reward_PG.mean(1, keepdim=True)
        variance_P1 = centred_PG.square().sum(1, keepdim=True) / max(reward_PG.shape[1] - 1, 1)
        return centred_PG / (variance_P1.sqrt() + self.epsilon)


@dataclass(frozen=True)
class LeaveOneOut(Advantage):
    """r minus the mean of the other members. RLOO, arXiv 2402.14740. Unbiased for the policy gradient."""

    def of_mixed(self, reward_PG: Tensor) -> Tensor:
        group_size = reward_PG.shape[1]
        return (reward_PG - reward_PG.mean(1, keepdim=True)) * group_size / max(group_size - 1, 1)


@dataclass(frozen=True)
class SoftmaxDifference(Advantage):
    """positive·softmax(ψ·r) − negative·softmax(−ψ·r) over the group. wd1, arXiv 2507.08838."""

    psi: float = 1.0
    """ψ, inverse temperature."""
    positive: float = 1.0
    """Weight of the attraction to good completions; 0: none."""
    negative: float = 1.0
    """Weight of the repulsion from bad completions; 0: none."""

    def __post_init__(self) -> None:
        require(self.psi > 0, "alignment.advantage.psi", self.psi, "above 0")
        for name in ("positive", "negative"):
            require(getattr(self, name) >= 0, f"alignment.advantage.{name}", getattr(self, name), "0 or more")
        weights = self.positive, self.negative
        require(any(weights), "alignment.advantage.positive, negative", weights, "above 0 for at least one of them")

    def of_mixed(self, reward_PG: Tensor) -> Tensor:
        scaled_PG = self.psi * reward_PG
        return self.positive * scaled_PG.softmax(1) - self.negative * (-scaled_PG).softmax(1)


ADVANTAGES: dict[str, type[Advantage]] = {
    "centred": Centred,
    "standardised": Standardised,
    "leave_one_out": LeaveOneOut,
    "softmax": SoftmaxDifference,
}


def is_mixed(reward_PG: Tensor) -> Tensor:
    """(P,) bool: whether the rewards of each group differ."""
    return reward_PG.amax(1) > reward_PG.amin(1)

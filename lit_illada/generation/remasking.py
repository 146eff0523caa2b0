"""Remasking rules: which committed tokens of a block are masked again, to be predicted with more context.

Source: ReMDM, arXiv 2503.00307. While the mask ratio falls from t to s, every token committed in an earlier step of the
block is remasked with probability σ ≤ σ_max = min(1, s / (1 − t)), the largest value with which the block still fills
up in time. The last step remasks nothing. Shapes: B rows, L tokens of the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lit_illada.errors import UserError
from lit_illada.runtime.lazy import Tensor, torch

if TYPE_CHECKING:
    from lit_illada.generation.draws import RowDraws


class RemaskRule(Protocol):
    """Selects the committed positions that become [M] again."""

    @property
    def is_on(self) -> bool:
        """Whether the rule ever remasks."""
        ...

    def __call__(
        self, confidence_BL: Tensor, is_written_BL: Tensor, steps_left: int, num_steps: int, draws: RowDraws
    ) -> Tensor:
        """(B, L) bool, true at written positions only; with one step left, nowhere.

        confidence_BL: float64, confidence of each token when it was committed. is_written_BL: bool, committed in an
        earlier step of this block. steps_left: denoising steps left, including this one.
        """
        ...


@dataclass(frozen=True)
class NoRemask:
    """Committed tokens are final."""

    @property
    def is_on(self) -> bool:
        return False

    def __call__(
        self, confidence_BL: Tensor, is_written_BL: Tensor, steps_left: int, num_steps: int, draws: RowDraws
    ) -> Tensor:
        return torch.zeros_like(is_written_BL)


@dataclass(frozen=True)
class _ReMDM:
    eta: float = 0.1
    """Strength of remasking, in (0, 1]; its role depends on the rule."""

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 1:
            raise UserError(f"generation.remask, eta is {self.eta}: it must be above 0 and at most 1")

    @property
    def is_on(self) -> bool:
        return True

    def __call__(
        self, confidence_BL: Tensor, is_written_BL: Tensor, steps_left: int, num_steps: int, draws: RowDraws
    ) -> Tensor:
        t, s = steps_left / num_steps, (steps_left - 1) / num_steps
        max_probability = min(1.0, s / (1 - t)) if t < 1 else 1.0
        probability_BL = self.probability(max_probability, confidence_BL, is_written_BL)
        return (draws.uniform(is_written_BL.shape[1]) < probability_BL) & is_written_BL

    def probability(self, max_probability: float, confidence_BL: Tensor, is_written_BL: Tensor) -> Tensor:
        """(B, L): σ of each written token. max_probability: σ_max."""
        raise NotImplementedError


@dataclass(frozen=True)
class ReMDMCap(_ReMDM):
    """σ = min(eta, σ_max)."""

    def probability(self, max_probability: float, confidence_BL: Tensor, is_written_BL: Tensor) -> Tensor:
        return torch.full_like(confidence_BL, min(self.eta, max_probability))


@dataclass(frozen=True)
class ReMDMRescale(_ReMDM):
    """σ = eta · σ_max."""

    def probability(self, max_probability: float, confidence_BL: Tensor, is_written_BL: Tensor) -> Tensor:
        return torch.full_like(confidence_BL, self.eta * max_probability)


@dataclass(frozen=True)
class ReMDMConfidence(_ReMDM):
    """σ = eta · σ_max · softmax(−confidence) over the written tokens, so that less confident tokens are remasked more
    often."""

    eta: float = 1.0
    """Strength of remasking, in (0, 1]; 1 in the paper."""

    def probability(self, max_probability: float, confidence_BL: Tensor, is_written_BL: Tensor) -> Tensor:
        weight_BL = (-confidence_BL).masked_fill(~is_written_BL, -torch.inf).softmax(-1)
        return self.eta * max_probability * weight_BL.nan_to_num(0.0)


REMASK_RULES: dict[str, type] = {
    "none": NoRemask,
    "remdm_cap": ReMDMCap,
    "remdm_rescale": ReMDMRescale,
    "remdm_confidence": ReMDMConfidence,
}

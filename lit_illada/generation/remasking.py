"""Which of a block's committed tokens are masked again, to be written anew with more around them?

ReMDM (arXiv 2503.00307): while the masked share falls from t to s, every token committed in an earlier step of the
block is remasked with probability σ ≤ min(1, s / (1 − t)), the most that still lets the block fill up on time; at the
last step nothing is. Shapes: B rows, L tokens of the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lit_illada.errors import UserError
from lit_illada.runtime.lazy import Tensor, torch

if TYPE_CHECKING:
    from lit_illada.generation.draws import RowDraws


class RemaskRule(Protocol):
    """Names the committed positions that become [M] again."""

    @property
    def is_on(self) -> bool: ...

    def __call__(
        self, confidence_BL: Tensor, is_written_BL: Tensor, steps_left: int, num_steps: int, draws: RowDraws
    ) -> Tensor:
        """(B, L) bool, true at written positions only; with one step left, nowhere.

        confidence_BL: what the model gave each token when it was committed. is_written_BL: committed in an earlier step
        of this block. steps_left: this step included.
        """
        ...


@dataclass(frozen=True)
class NoRemask:
    """What is committed stays."""

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
        most = min(1.0, s / (1 - t)) if t < 1 else 1.0
        probability_BL = self.probability(most, confidence_BL, is_written_BL)
        return (draws.uniform(is_written_BL.shape[1]) < probability_BL) & is_written_BL

    def probability(self, most: float, confidence_BL: Tensor, is_written_BL: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class ReMDMCap(_ReMDM):
    """σ = min(eta, most)."""

    def probability(self, most: float, confidence_BL: Tensor, is_written_BL: Tensor) -> Tensor:
        return torch.full_like(confidence_BL, min(self.eta, most))


@dataclass(frozen=True)
class ReMDMRescale(_ReMDM):
    """σ = eta · most."""

    def probability(self, most: float, confidence_BL: Tensor, is_written_BL: Tensor) -> Tensor:
        return torch.full_like(confidence_BL, self.eta * most)


@dataclass(frozen=True)
class ReMDMConfidence(_ReMDM):
    """σ of a token = most · softmax(−confidence) over the written ones, times eta (1 in the paper): the doubtful more
    often."""

    eta: float = 1.0

    def probability(self, most: float, confidence_BL: Tensor, is_written_BL: Tensor) -> Tensor:
        share_BL = (-confidence_BL).masked_fill(~is_written_BL, -torch.inf).softmax(-1)
        return self.eta * most * share_BL.nan_to_num(0.0)


REMASK_RULES: dict[str, type] = {
    "none": NoRemask,
    "remdm_cap": ReMDMCap,
    "remdm_rescale": ReMDMRescale,
    "remdm_confidence": ReMDMConfidence,
}

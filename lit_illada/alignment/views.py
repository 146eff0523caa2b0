"""Views: masked states of completions with the tokens scored in them, and the interface of estimators.

Shapes: S sequences, W tokens per sequence, N views.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

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

    def upper(
        self, log_prob_NSW: Tensor, weight_NSW: Tensor, is_selected_NSW: Tensor, num_scored_S: Tensor
    ) -> Tensor | None:
        """(S, W) scores for completions of negative advantage; None: the same as for the others.

        num_scored_S: (S,) int64, scored tokens of each completion.
        """
        return None


def masked_context(completions: Completions, noise: MaskNoise, draw: int, probability: float) -> Tensor:
    """(S, W) bool: tokens of the prompt that a draw masks."""
    if probability == 0:
        return torch.zeros_like(completions.is_prompt)
    return completions.is_prompt & (noise.context(draw) < probability)


def ones(completions: Completions) -> Tensor:
    """(S, 1) float64 ones."""
    return torch.ones(len(completions), 1, dtype=torch.float64, device=completions.ids.device)

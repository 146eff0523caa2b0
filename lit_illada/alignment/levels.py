"""Levels: what one unit of the loss, and hence one ratio, is.

Shapes: S sequences, W tokens per sequence, U units per sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from lit_illada.errors import UserError
from lit_illada.runtime.lazy import Tensor, torch

if TYPE_CHECKING:
    from lit_illada.alignment.completions import Completions


class Level(StrEnum):
    """Unit of the loss."""

    TOKEN = "token"  # a token
    STEP = "step"  # the tokens that one step of the rollout committed
    SEQUENCE = "sequence"  # a completion; its scores grow with the length, and exp of their difference explodes
    SEQUENCE_MEAN = "sequence_mean"  # a completion, divided by its number of tokens


@dataclass(frozen=True, eq=False)
class Units:
    """The units of completions."""

    level: Level
    is_unit: Tensor
    """(S, U) bool."""
    num_tokens: Tensor
    """(S,) int64, scored tokens of each sequence."""
    step: Tensor | None
    """(S, W) int64, step of each scored token; −1 elsewhere; None: level is not `step`."""

    @classmethod
    def of(cls, level: Level, completions: Completions, key: str = "alignment.level") -> Units:
        """Raises UserError for steps of completions without a trace. key: config key of the level."""
        num_tokens_S = completions.num_scored
        match level:
            case Level.TOKEN:
                return cls(level, completions.is_scored, num_tokens_S, None)
            case Level.SEQUENCE | Level.SEQUENCE_MEAN:
                return cls(level, num_tokens_S[:, None] > 0, num_tokens_S, None)
        if completions.steps is None:
            raise UserError(
                f"{key} is 'step', but the steps of the completions are unknown: the rollout may mask tokens again, or "
                f"there was none; set {key}=token"
            )
        step_SW = completions.steps.masked_fill(~completions.is_scored, -1)
        steps_U = torch.arange(int(step_SW.max()) + 1, device=step_SW.device)
        return cls(level, (step_SW[..., None] == steps_U).any(1), num_tokens_S, step_SW)

    def sum(self, token: Tensor) -> Tensor:
        """(…, S, U): the scores of the units, from those of the tokens (…, S, W)."""
        match self.level:
            case Level.TOKEN:
                return token
            case Level.SEQUENCE:
                return token.sum(-1, keepdim=True)
            case Level.SEQUENCE_MEAN:
                return token.sum(-1, keepdim=True) / self.num_tokens.clamp(min=1)[:, None]
        assert self.step is not None
        steps_U = torch.arange(self.is_unit.shape[1], device=token.device)
        # a product with indicators is deterministic, unlike the atomic adds of a scatter on CUDA
        is_of_step_SWU = (self.step[..., None] == steps_U).to(token.dtype)
        return (token[..., None, :] @ is_of_step_SWU)[..., 0, :]

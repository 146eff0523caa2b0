"""Repetition penalties: lower logits for tokens of the text so far, or for tokens that would extend a repetition.

A bidirectional sampler sees committed tokens on both sides of a position; only new tokens to its left count, as for a
causal model. Digits, punctuation and special tokens are never penalised, because a calculation may need the same digit
again. Shapes: A rows, T tokens, M masked positions in row-major order, V vocabulary, E exempt tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lit_illada.errors import require
from lit_illada.runtime.lazy import Tensor, torch

if TYPE_CHECKING:
    from lit_illada.generation.logit_controls import Positions

_LONGEST_MATCH = 64  # tokens; DRY treats longer matches as this long, where its penalty is overwhelming already


@dataclass(frozen=True, eq=False)
class Left:
    """The text to the left of each masked position."""

    token_ids: Tensor
    """(M, T) int64, the row of each position."""
    is_new: Tensor
    """(M, T) bool, committed new tokens to the left of the position."""
    columns: Tensor
    """(M,) int64, column of each position."""

    @classmethod
    def of(cls, positions: Positions, mask_token_id: int) -> Left:
        """The text to the left of the positions that a control receives."""
        token_ids_MT = positions.token_ids[positions.rows]
        column_T = torch.arange(token_ids_MT.shape[1], device=token_ids_MT.device)
        is_left_MT = (column_T >= positions.prompt_length) & (column_T < positions.columns[:, None])
        return cls(token_ids_MT, is_left_MT & (token_ids_MT != mask_token_id), positions.columns)


class Repetition(Protocol):
    """A penalty on repeated tokens."""

    @property
    def is_on(self) -> bool:
        """Whether any token is penalised."""
        ...

    def __call__(self, logits_MV: Tensor, left: Left) -> Tensor:
        """Penalised logits (M, V), without regard to exempt tokens."""
        ...


@dataclass(frozen=True)
class NoPenalty:
    """No penalty."""

    @property
    def is_on(self) -> bool:
        return False

    def __call__(self, logits_MV: Tensor, left: Left) -> Tensor:
        return logits_MV


@dataclass(frozen=True)
class Penalty:
    """Divides positive logits of previous tokens by the penalty and multiplies negative ones (CTRL, arXiv 1909.05858,
    in the form of Hugging Face's RepetitionPenaltyLogitsProcessor)."""

    penalty: float = 1.2
    """Divisor of the logits, above 1."""

    def __post_init__(self) -> None:
        require(self.penalty > 1, "generation.repetition.penalty", self.penalty, "above 1")

    @property
    def is_on(self) -> bool:
        return True

    def __call__(self, logits_MV: Tensor, left: Left) -> Tensor:
        is_seen_MV = torch.zeros_like(logits_MV, dtype=torch.bool)
        row, column = left.is_new.nonzero(as_tuple=True)
        is_seen_MV[row, left.token_ids[row, column]] = True
        lowered_MV = torch.where(logits_MV > 0, logits_MV / self.penalty, logits_MV * self.penalty)
        return torch.where(is_seen_MV, lowered_MV, logits_MV)


@dataclass(frozen=True)
class DRY:
    """Subtracts multiplier · base^(n − allowed_length) from the logit of a token that would extend a repetition of
    n ≥ allowed_length tokens (DRY, text-generation-webui, pull request 5677).

    n is the length of the longest sequence directly before the position that also precedes an earlier copy of the
    token. Only [M] ends a sequence; there are no sequence breakers.
    """

    multiplier: float = 0.8
    """Penalty of a repetition of allowed_length tokens, in logits."""
    base: float = 1.75
    """Growth of the penalty per further token, 1 or more."""
    allowed_length: int = 2
    """Shortest repetition that is penalised, tokens."""

    def __post_init__(self) -> None:
        require(self.multiplier > 0, "generation.repetition.multiplier", self.multiplier, "above 0")
        require(self.base >= 1, "generation.repetition.base", self.base, "1 or more")
        require(self.allowed_length >= 1, "generation.repetition.allowed_length", self.allowed_length, "1 or more")

    @property
    def is_on(self) -> bool:
        return True

    def __call__(self, logits_MV: Tensor, left: Left) -> Tensor:
        match_MT = _match_lengths(left)
        penalty_MT = self.multiplier * self.base ** (match_MT - self.allowed_length).to(logits_MV.dtype)
        penalty_MT = penalty_MT.masked_fill(match_MT < self.allowed_length, 0.0)
        return logits_MV - torch.zeros_like(logits_MV).scatter_reduce_(1, left.token_ids, penalty_MT, "amax")


REPETITIONS: dict[str, type] = {"none": NoPenalty, "penalty": Penalty, "dry": DRY}


class RepetitionControl:
    """Logit control that applies a penalty to all tokens but exempt ones."""

    def __init__(self, rule: Repetition, mask_token_id: int, exempt_token_ids: Tensor) -> None:
        self._rule = rule
        self._mask_token_id = mask_token_id
        self._exempt_token_ids = exempt_token_ids

    def __call__(self, logits_MV: Tensor, positions: Positions) -> Tensor:
        exempt_ME = logits_MV[:, self._exempt_token_ids]
        penalised_MV = self._rule(logits_MV, Left.of(positions, self._mask_token_id))
        return penalised_MV.index_copy(1, self._exempt_token_ids, exempt_ME)


def _match_lengths(left: Left) -> Tensor:
    """(M, T) int64: number of tokens directly before each column that equal those directly before the position."""
    columns_M1 = left.columns[:, None]
    column_T = torch.arange(left.token_ids.shape[1], device=left.token_ids.device)
    length_MT = torch.zeros_like(left.token_ids)
    is_match_MT = left.is_new.clone()
    for distance in range(1, _LONGEST_MATCH + 1):
        before_M1, before_T = columns_M1 - distance, column_T - distance
        is_inside_MT = (before_M1 >= 0) & (before_T >= 0)
        mine_M1, theirs_T = before_M1.clamp(min=0), before_T.clamp(min=0)
        is_new_MT = left.is_new.gather(1, mine_M1) & left.is_new[:, theirs_T]
        is_same_MT = left.token_ids.gather(1, mine_M1) == left.token_ids[:, theirs_T]
        is_match_MT = is_match_MT & is_inside_MT & is_new_MT & is_same_MT
        if not is_match_MT.any():
            break
        length_MT += is_match_MT
    return length_MT

"""Which tokens of the text so far become less probable? Those written before, or those that would go on repeating.

A bidirectional sampler sees committed tokens on both sides of a place; only those to its left count, as for a causal
model, and only new ones. Digits, punctuation and special tokens are never penalised: a calculation may need the same
digit again. Shapes: A rows, T tokens, M masked tokens in row-major order, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lit_illada.errors import UserError
from lit_illada.runtime.lazy import Tensor, torch

if TYPE_CHECKING:
    from lit_illada.generation.logit_controls import Place

_LONGEST_MATCH = 64  # tokens; the penalty of DRY stays that of this match beyond it: by then it is overwhelming


@dataclass(frozen=True, eq=False)
class Left:
    """What stands to the left of each of the M places: `token_ids`, (M, T), where `is_new`, (M, T), a new token is
    committed there. columns: (M,), the places themselves."""

    token_ids: Tensor
    is_new: Tensor
    columns: Tensor

    @classmethod
    def of(cls, place: Place, mask_token_id: int) -> Left:
        token_ids_MT = place.token_ids[place.rows]
        column_T = torch.arange(token_ids_MT.shape[1], device=token_ids_MT.device)
        is_left_MT = (column_T >= place.prompt_length) & (column_T < place.columns[:, None])
        return cls(token_ids_MT, is_left_MT & (token_ids_MT != mask_token_id), place.columns)


class Repetition(Protocol):
    @property
    def is_on(self) -> bool: ...

    def __call__(self, logits_MV: Tensor, left: Left) -> Tensor:
        """The penalised logits, as if no token were exempt."""
        ...


@dataclass(frozen=True)
class NoPenalty:
    """Tokens may be repeated."""

    @property
    def is_on(self) -> bool:
        return False

    def __call__(self, logits_MV: Tensor, left: Left) -> Tensor:
        return logits_MV


@dataclass(frozen=True)
class Penalty:
    """The logit of every token seen is divided by the penalty, or multiplied where it is below 0 (CTRL,
    arXiv 1909.05858, in the form of Hugging Face's RepetitionPenaltyLogitsProcessor)."""

    penalty: float = 1.2

    def __post_init__(self) -> None:
        _require(self.penalty > 1, "penalty", self.penalty, "above 1")

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
    """A token that would lengthen a repetition of n tokens to n + 1 loses multiplier · base^(n − allowed_length),
    for n ≥ allowed_length (DRY, text-generation-webui, pull request 5677).

    n: of the longest stretch that stands directly before the place and also directly before an earlier copy of the
    token. No token breaks a stretch, but a [M] does.
    """

    multiplier: float = 0.8
    base: float = 1.75
    allowed_length: int = 2

    def __post_init__(self) -> None:
        _require(self.multiplier > 0, "multiplier", self.multiplier, "above 0")
        _require(self.base >= 1, "base", self.base, "1 or more")
        _require(self.allowed_length >= 1, "allowed_length", self.allowed_length, "1 or more")

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
    """A penalty with its exemptions, as a control."""

    def __init__(self, rule: Repetition, mask_token_id: int, exempt_token_ids: Tensor) -> None:
        self._rule = rule
        self._mask_token_id = mask_token_id
        self._exempt_token_ids = exempt_token_ids

    def __call__(self, logits_MV: Tensor, place: Place) -> Tensor:
        exempt_ME = logits_MV[:, self._exempt_token_ids]
        penalised_MV = self._rule(logits_MV, Left.of(place, self._mask_token_id))
        return penalised_MV.index_copy(1, self._exempt_token_ids, exempt_ME)


def _match_lengths(left: Left) -> Tensor:
    """(M, T): how many tokens directly before a column equal those directly before the place."""
    columns_M1 = left.columns[:, None]
    column_T = torch.arange(left.token_ids.shape[1], device=left.token_ids.device)
    length_MT = torch.zeros_like(left.token_ids)
    is_alive_MT = left.is_new.clone()
    for distance in range(1, _LONGEST_MATCH + 1):
        before_M1, before_T = columns_M1 - distance, column_T - distance
        is_inside_MT = (before_M1 >= 0) & (before_T >= 0)
        mine_M1, theirs_T = before_M1.clamp(min=0), before_T.clamp(min=0)
        is_new_MT = left.is_new.gather(1, mine_M1) & left.is_new[:, theirs_T]
        is_same_MT = left.token_ids.gather(1, mine_M1) == left.token_ids[:, theirs_T]
        is_alive_MT = is_alive_MT & is_inside_MT & is_new_MT & is_same_MT
        if not is_alive_MT.any():
            break
        length_MT += is_alive_MT
    return length_MT


def _require(is_right: bool, name: str, value: float, allowed: str) -> None:
    if not is_right:
        raise UserError(f"generation.repetition.{name} is {value}: it must be {allowed}")

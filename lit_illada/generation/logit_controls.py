"""Logit controls: changes of the model's logits before tokens are proposed, such as forbidden tokens.

Controls run after guidance and before temperature, so both the argmax and the confidence ranking depend on them.
Shapes: B rows, T tokens, M masked positions in row-major order, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Positions:
    """The positions that a step's logits belong to."""

    token_ids: Tensor
    """(B, T) int64, the active rows, with left padding and [M]."""
    rows: Tensor
    """(M,) int64, row of each position in `token_ids`."""
    columns: Tensor
    """(M,) int64, column of each position in `token_ids`."""
    prompt_length: int
    """Columns before the first new token."""
    batch_rows: Tensor
    """(B,) int64, index of each active row in the whole batch; rows that have stopped are absent."""


@dataclass(frozen=True)
class TokenKinds:
    """Properties of tokens that only the tokenizer knows."""

    think_open_id: int | None = None
    """Token that opens a reasoning segment; None: the tokenizer has none."""
    think_close_id: int | None = None
    """Token that closes a reasoning segment; None: the tokenizer has none."""
    unpenalised_ids: Sequence[int] = ()
    """Digits, punctuation and special tokens: exempt from repetition penalties."""


NO_KINDS = TokenKinds()


class LogitControl(Protocol):
    """A change of the logits of masked positions."""

    def __call__(self, logits_MV: Tensor, positions: Positions) -> Tensor:
        """Returns the changed logits (M, V); may change them in place."""
        ...


@dataclass(frozen=True, eq=False)
class ForbidTokens:
    """Tokens that are never generated, such as [M]."""

    token_ids: Tensor

    def __call__(self, logits_MV: Tensor, positions: Positions) -> Tensor:
        return logits_MV.index_fill_(1, self.token_ids, -torch.inf)


@dataclass(frozen=True, eq=False)
class MinNewTokens:
    """Forbids stop tokens at the first `min_new_tokens` new positions.

    With `min_new_tokens` equal to `max_new_tokens` this is LLaDA's `logits_eos_inf`.
    """

    min_new_tokens: int
    stop_token_ids: Tensor

    def __call__(self, logits_MV: Tensor, positions: Positions) -> Tensor:
        is_early_M = positions.columns - positions.prompt_length < self.min_new_tokens
        stopless_MV = logits_MV.index_fill(1, self.stop_token_ids, -torch.inf)
        return torch.where(is_early_M[:, None], stopless_MV, logits_MV)


def default_controls(min_new_tokens: int, mask_token_id: int, stop_token_ids: Tensor) -> list[LogitControl]:
    """Controls of every generation: no mask token, and no stop token before `min_new_tokens`."""
    controls: list[LogitControl] = [ForbidTokens(torch.tensor([mask_token_id], device=stop_token_ids.device))]
    if min_new_tokens > 0:
        controls.append(MinNewTokens(min_new_tokens, stop_token_ids))
    return controls

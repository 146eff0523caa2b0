"""What changes the model's logits before a token is proposed: tokens forbidden, ends put off.

A control is applied after guidance and before temperature, so that the argmax and the confidence ranking both see it.
Shapes: B rows, T tokens, M masked tokens in row-major order, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Place:
    """Where the logits stand.

    token_ids: (B, T) int64, the rows of this step as they are, [M] and padding on the left included. rows, columns:
    (M,) int64, each logit row's place in them. prompt_length: columns before the first new token. batch_rows: (B,)
    int64, which of the generation's rows these are; some have stopped before.
    """

    token_ids: Tensor
    rows: Tensor
    columns: Tensor
    prompt_length: int
    batch_rows: Tensor


@dataclass(frozen=True)
class TokenKinds:
    """What only the tokenizer knows of the tokens.

    think_open_id, think_close_id: what stands before and behind a thought; None: it has none. unpenalised_ids: digits,
    punctuation and special tokens, which may always be repeated.
    """

    think_open_id: int | None = None
    think_close_id: int | None = None
    unpenalised_ids: Sequence[int] = ()


NO_KINDS = TokenKinds()


class LogitControl(Protocol):
    def __call__(self, logits_MV: Tensor, place: Place) -> Tensor:
        """The logits to go on with; it may change them in place."""
        ...


@dataclass(frozen=True, eq=False)
class ForbidTokens:
    """Tokens that are never written: the [M] itself is one."""

    token_ids: Tensor

    def __call__(self, logits_MV: Tensor, place: Place) -> Tensor:
        return logits_MV.index_fill_(1, self.token_ids, -torch.inf)


@dataclass(frozen=True, eq=False)
class MinNewTokens:
    """No stop token among the first `min_new_tokens` places after the prompt. As many as the budget is LLaDA's
    `logits_eos_inf`."""

    min_new_tokens: int
    stop_token_ids: Tensor

    def __call__(self, logits_MV: Tensor, place: Place) -> Tensor:
        is_early_M = place.columns - place.prompt_length < self.min_new_tokens
        stopless_MV = logits_MV.index_fill(1, self.stop_token_ids, -torch.inf)
        return torch.where(is_early_M[:, None], stopless_MV, logits_MV)


def own_controls(min_new_tokens: int, mask_token_id: int, stop_token_ids: Tensor) -> list[LogitControl]:
    """The controls of every generation: no mask tokens, and no stop token before `min_new_tokens`."""
    controls: list[LogitControl] = [ForbidTokens(torch.tensor([mask_token_id], device=stop_token_ids.device))]
    if min_new_tokens > 0:
        controls.append(MinNewTokens(min_new_tokens, stop_token_ids))
    return controls

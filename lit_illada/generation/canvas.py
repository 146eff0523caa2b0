"""What generation works on and gives back: prompts side by side, a step's commits, the finished texts.

Shapes: B rows, P columns before the first new token, T tokens so far, N new tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from lit_illada.errors import UserError


@dataclass(frozen=True, eq=False)
class Commit:
    """One denoising step, as it has just changed the text.

    block, step: counted from 0, the step within its block. prompt_length: P. token_ids: (B, T), padding on the left,
    prompts and text so far, [M] included; a view, valid during the callback. is_committed: (B, T) bool, the positions
    that were written in this step; is_remasked: those that were masked again. confidence: (B, T) float64, the model's
    probability of the token there; entropy: (B, T) float64, nats, of its distribution there; both 0 elsewhere.
    """

    block: int
    step: int
    prompt_length: int
    token_ids: Tensor
    is_committed: Tensor
    is_remasked: Tensor
    confidence: Tensor
    entropy: Tensor


class ThinkingEnd(StrEnum):
    """Who ended a row's thought: nobody, the model, a rule that raised the closing token, or an early exit. It is the
    model where that token was the most probable one even without the rule."""

    none = "none"
    natural = "natural"
    forced = "forced"
    early_exit = "early_exit"


@dataclass(frozen=True)
class Alarm:
    """A loop that was seen while the row was written: a run of copies, by the place of its first new token.

    start: of the first copy. period, length: of the run, in tokens. step: the row's denoising steps until then.
    num_remasked: tokens that were masked again because of it.
    """

    start: int
    period: int
    length: int
    step: int
    num_remasked: int = 0


@dataclass(frozen=True)
class RowEvents:
    """What was done to a row's text, beside denoising. alarms: in the order of their steps."""

    thinking_stop: ThinkingEnd = ThinkingEnd.none
    alarms: tuple[Alarm, ...] = ()


@dataclass(frozen=True, eq=False)
class Generation:
    """What was written after the prompts.

    token_ids: (B, N) int64; a row's text is its first num_tokens, then comes its stop token, if it has one, and nothing
    of meaning after it. num_tokens: (B,) int64. is_stopped: (B,) bool, false where the budget ended the row.
    num_forwards: calls of the model. events: of each row.
    """

    token_ids: Tensor
    num_tokens: Tensor
    is_stopped: Tensor
    num_forwards: int
    events: Sequence[RowEvents]

    @classmethod
    def of(
        cls,
        new_ids_BN: Tensor,
        stop_token_ids: Tensor,
        num_forwards: int,
        events_of: Callable[[int, list[int]], RowEvents],
    ) -> "Generation":
        """events_of: asked with each row's number and text."""
        is_stop_BN = torch.isin(new_ids_BN, stop_token_ids)
        num_tokens_B = is_stop_BN.cumsum(-1).eq(0).sum(-1)
        texts = _cut(new_ids_BN, num_tokens_B)
        events = [events_of(row, text) for row, text in enumerate(texts)]
        return cls(new_ids_BN, num_tokens_B, is_stop_BN.any(-1), num_forwards, events)

    def texts(self) -> list[list[int]]:
        """Each row's tokens, without prompt and stop token."""
        return _cut(self.token_ids, self.num_tokens)


def _cut(token_ids_BN: Tensor, num_tokens_B: Tensor) -> list[list[int]]:
    return [row[:length] for row, length in zip(token_ids_BN.tolist(), num_tokens_B.tolist(), strict=True)]


def left_padded(prompts: Sequence[Tensor], padding_token_id: int) -> tuple[Tensor, list[int]]:
    """The prompts with their ends aligned, (B, P) int64, and the columns of padding before each."""
    longest = max(len(prompt) for prompt in prompts)
    num_padding = [longest - len(prompt) for prompt in prompts]
    padded = [
        torch.nn.functional.pad(prompt, (padding, 0), value=padding_token_id)
        for prompt, padding in zip(prompts, num_padding, strict=True)
    ]
    return torch.stack(padded), num_padding


def require_room(prompts: Sequence[Tensor], max_new_tokens: int, max_position_embeddings: int) -> None:
    """Raises UserError when a prompt and the budget together exceed the model's positions."""
    longest = max(len(prompt) for prompt in prompts)
    if longest + max_new_tokens > max_position_embeddings:
        raise UserError(
            f"the prompt has {longest} tokens and generation.max_new_tokens is {max_new_tokens}, together "
            f"more than the {max_position_embeddings} positions of the model: shorten one of them"
        )

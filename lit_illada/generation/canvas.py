"""Inputs and outputs of generation: left-padded prompts, the commits of a step, the finished texts.

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
    """One denoising step, as `on_commit` callbacks receive it right after it has changed the text."""

    block: int
    """Index of the block, from 0."""
    step: int
    """Index of the step within its block, from 0."""
    prompt_length: int
    """P, columns before the first new token."""
    token_ids: Tensor
    """(B, T) int64: left padding, prompts and text so far, [M] included; a view, valid during the callback only."""
    is_committed: Tensor
    """(B, T) bool, positions written in this step."""
    is_remasked: Tensor
    """(B, T) bool, positions masked again in this step."""
    confidence: Tensor
    """(B, T) float64, the model's probability of each committed token; 0 elsewhere."""
    entropy: Tensor
    """(B, T) float64, nats, of the model's distribution at each committed position; 0 elsewhere."""


class ThinkingEnd(StrEnum):
    """How the reasoning segment of a row ended."""

    none = "none"
    """It did not end."""
    natural = "natural"
    """The model closed it: the closing token was the most probable one without intervention."""
    forced = "forced"
    """A `thinking_stop` rule that raised the logit of the closing token."""
    early_exit = "early_exit"
    """An `early_exit` rule."""


@dataclass(frozen=True)
class Alarm:
    """A loop detected during generation: a run of exact copies among the new tokens of a row."""

    start: int
    """Index of the first copy among the row's new tokens, from 0."""
    period: int
    """Tokens per copy."""
    length: int
    """Tokens of the whole run."""
    step: int
    """Denoising steps of the row before the detection."""
    num_remasked: int = 0
    """Tokens masked again in response."""


@dataclass(frozen=True)
class RowEvents:
    """Interventions of loop control in a row."""

    thinking_stop: ThinkingEnd = ThinkingEnd.none
    """How the reasoning segment ended."""
    alarms: tuple[Alarm, ...] = ()
    """Detected loops, in the order of their steps."""


@dataclass(frozen=True, eq=False)
class Generation:
    """The generated continuations of a batch of prompts."""

    token_ids: Tensor
    """(B, N) int64: the text of a row is its first `num_tokens` tokens; the stop token and undefined tokens follow."""
    num_tokens: Tensor
    """(B,) int64, tokens before the stop token."""
    is_stopped: Tensor
    """(B,) bool, false where the row used up `max_new_tokens`."""
    num_forwards: int
    """Forward passes of the model."""
    events: Sequence[RowEvents]
    """Interventions of loop control, per row."""

    @classmethod
    def of(
        cls,
        new_ids_BN: Tensor,
        stop_token_ids: Tensor,
        num_forwards: int,
        events_of: Callable[[int, list[int]], RowEvents],
    ) -> "Generation":
        """Builds the result from the new tokens (B, N). events_of: called with each row's index and text."""
        is_stop_BN = torch.isin(new_ids_BN, stop_token_ids)
        num_tokens_B = is_stop_BN.cumsum(-1).eq(0).sum(-1)
        texts = _texts(new_ids_BN, num_tokens_B)
        events = [events_of(row, text) for row, text in enumerate(texts)]
        return cls(new_ids_BN, num_tokens_B, is_stop_BN.any(-1), num_forwards, events)

    def texts(self) -> list[list[int]]:
        """New tokens of each row, without the stop token."""
        return _texts(self.token_ids, self.num_tokens)


def _texts(token_ids_BN: Tensor, num_tokens_B: Tensor) -> list[list[int]]:
    return [row[:length] for row, length in zip(token_ids_BN.tolist(), num_tokens_B.tolist(), strict=True)]


def left_padded(prompts: Sequence[Tensor], padding_token_id: int) -> tuple[Tensor, list[int]]:
    """Pads the prompts on the left. Returns them, (B, P) int64, and the columns of padding before each."""
    longest = max(len(prompt) for prompt in prompts)
    num_padding = [longest - len(prompt) for prompt in prompts]
    padded = [
        torch.nn.functional.pad(prompt, (padding, 0), value=padding_token_id)
        for prompt, padding in zip(prompts, num_padding, strict=True)
    ]
    return torch.stack(padded), num_padding


def check_lengths(prompts: Sequence[Tensor], max_new_tokens: int, max_position_embeddings: int) -> None:
    """Raises UserError when a prompt and the budget together exceed `max_position_embeddings`."""
    longest = max(len(prompt) for prompt in prompts)
    if longest + max_new_tokens > max_position_embeddings:
        raise UserError(
            f"the prompt has {longest} tokens and generation.max_new_tokens is {max_new_tokens}, together "
            f"more than the {max_position_embeddings} positions of the model: shorten one of them"
        )

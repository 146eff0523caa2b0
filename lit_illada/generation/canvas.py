"""What generation works on and gives back: prompts side by side, a step's commits, the finished texts.

Shapes: B rows, P columns before the first new token, T tokens so far, N new tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class Generation:
    """What was written after the prompts.

    token_ids: (B, N) int64; a row's text is its first num_tokens, then comes its stop token, if it has one, and nothing
    of meaning after it. num_tokens: (B,) int64. is_stopped: (B,) bool, false where the budget ended the row.
    num_forwards: calls of the model.
    """

    token_ids: Tensor
    num_tokens: Tensor
    is_stopped: Tensor
    num_forwards: int

    @classmethod
    def of(cls, new_ids_BN: Tensor, stop_token_ids: Tensor, num_forwards: int) -> "Generation":
        is_stop_BN = torch.isin(new_ids_BN, stop_token_ids)
        return cls(new_ids_BN, is_stop_BN.cumsum(-1).eq(0).sum(-1), is_stop_BN.any(-1), num_forwards)

    def texts(self) -> list[list[int]]:
        """Each row's tokens, without prompt and stop token."""
        return [row[:length] for row, length in zip(self.token_ids.tolist(), self.num_tokens.tolist(), strict=True)]


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

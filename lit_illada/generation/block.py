"""How does a masked-diffusion model write text of any length? Block by block: append [M]s, denoise them, go on or stop.

Shapes: B rows, P prompt tokens, T tokens so far, L tokens a block, M masked tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_illada.errors import UserError
from lit_illada.generation.config import GenerationConfig

LogitsFn = Callable[[Tensor, Tensor], Tensor]
"""(input_ids (B, T) int64, is_selected (B, T) bool) -> logits (M, V) of the selected tokens in row-major order."""


@dataclass(frozen=True, eq=False)
class Commit:
    """One denoising step, as it has just changed the text.

    block, step: counted from 0, the step within its block. token_ids: (B, T), prompts and text so far, [M] included; a
    view, valid during the callback. is_committed: (B, T) bool, the positions that became final in this step.
    confidence: (B, T) float64, the model's probability of the token there; 0 elsewhere.
    """

    block: int
    step: int
    token_ids: Tensor
    is_committed: Tensor
    confidence: Tensor


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

    def texts(self) -> list[list[int]]:
        """Each row's tokens, without prompt and stop token."""
        return [row[:length] for row, length in zip(self.token_ids.tolist(), self.num_tokens.tolist(), strict=True)]


@torch.no_grad()
def generate(
    logits_fn: LogitsFn,
    prompt_ids: Tensor,
    config: GenerationConfig,
    *,
    mask_token_id: int,
    stop_token_ids: Sequence[int],
    max_position_embeddings: int,
    generator: torch.Generator,
    on_commit: Callable[[Commit], None] | None = None,
) -> Generation:
    """Continues every row of `prompt_ids` (B, P) until a finished block holds a stop token, or to the budget.

    Rows that have stopped cost no more forward passes. A [M] inside a prompt stays as it is. Raises UserError when
    prompt and budget together exceed `max_position_embeddings`. Source: iLLaDA, arXiv 2606.25331, on LLaDA's
    low-confidence remasking, arXiv 2502.09992.
    """
    num_rows, prompt_length = prompt_ids.shape
    if prompt_length + config.max_new_tokens > max_position_embeddings:
        raise UserError(
            f"the prompt has {prompt_length} tokens and generation.max_new_tokens is {config.max_new_tokens}, together "
            f"more than the {max_position_embeddings} positions of the model: shorten one of them"
        )
    stops = torch.tensor(list(stop_token_ids), dtype=prompt_ids.dtype, device=prompt_ids.device)
    is_stopped_B = torch.zeros(num_rows, dtype=torch.bool, device=prompt_ids.device)
    token_ids_BT = prompt_ids
    num_forwards = 0
    for block, start in enumerate(range(0, config.max_new_tokens, config.block_length)):
        block_length = min(config.block_length, config.max_new_tokens - start)
        token_ids_BT = F.pad(token_ids_BT, (0, block_length), value=mask_token_id)
        is_masked_BT = torch.zeros_like(token_ids_BT, dtype=torch.bool)
        is_masked_BT[:, -block_length:] = ~is_stopped_B[:, None]
        steps = _denoise(logits_fn, token_ids_BT, is_masked_BT, config, mask_token_id, generator)
        for step, (is_committed_BT, confidence_BT) in enumerate(steps):
            num_forwards += 1
            if on_commit is not None:
                on_commit(Commit(block, step, token_ids_BT, is_committed_BT, confidence_BT))
        is_stopped_B |= torch.isin(token_ids_BT[:, -block_length:], stops).any(-1)
        if is_stopped_B.all():
            break
    new_ids_BN = token_ids_BT[:, prompt_length:]
    num_tokens_B = torch.isin(new_ids_BN, stops).cumsum(-1).eq(0).sum(-1)
    return Generation(new_ids_BN, num_tokens_B, is_stopped_B, num_forwards)


def _denoise(
    logits_fn: LogitsFn,
    token_ids_BT: Tensor,
    is_masked_BT: Tensor,
    config: GenerationConfig,
    mask_token_id: int,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Fills the masked tokens in place, in at most num_steps forward passes over the rows that have any; after each
    yields which tokens it committed and the confidence in them, 0 elsewhere: (B, T) each."""
    is_active_B = is_masked_BT.any(-1)
    for steps_left in range(config.num_steps, 0, -1):
        logits_MV = logits_fn(token_ids_BT[is_active_B], is_masked_BT[is_active_B])
        proposed_M, confidence_M = propose(logits_MV, mask_token_id, config.temperature, generator)
        proposed_BT = token_ids_BT.masked_scatter(is_masked_BT, proposed_M)
        confidence_BT = confidence_M.new_zeros(token_ids_BT.shape).masked_scatter(is_masked_BT, confidence_M)
        is_committed_BT = config.commit_rule(confidence_BT, is_masked_BT, steps_left)
        token_ids_BT.copy_(proposed_BT.where(is_committed_BT, token_ids_BT))
        is_masked_BT &= ~is_committed_BT
        yield is_committed_BT, confidence_BT * is_committed_BT
        if not is_masked_BT.any():
            return


def propose(
    logits_MV: Tensor, mask_token_id: int, temperature: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A token for every masked position, (M,) int64, and the model's probability of it, (M,) float64.

    [M] itself is never proposed. With a temperature the token is argmax(logit + temperature · Gumbel noise), in float64
    because float32 noise is too coarse in its tail (arXiv 2409.02908); the probability is of the noiseless logits.
    """
    logits_MV = logits_MV.to(torch.float64, copy=True)
    logits_MV[:, mask_token_id] = -torch.inf
    noisy_MV = logits_MV
    if temperature > 0:
        uniform_MV = torch.rand(logits_MV.shape, dtype=torch.float64, device=logits_MV.device, generator=generator)
        noisy_MV = logits_MV - temperature * uniform_MV.log().neg().log()
    token_ids_M = noisy_MV.argmax(-1)
    probs_MV = logits_MV.softmax(-1)
    return token_ids_M, probs_MV.gather(1, token_ids_M[:, None])[:, 0]

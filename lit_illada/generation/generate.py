"""Block-by-block generation of a masked-diffusion model.

Shapes: B rows, P columns before the first new token, T columns so far.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_illada.generation.cache import CachePlan, NoCache
from lit_illada.generation.canvas import Commit, Generation, left_padded, require_room
from lit_illada.generation.config import Canvas, GenerationConfig
from lit_illada.generation.draws import Draws
from lit_illada.generation.logit_controls import NO_KINDS, LogitControl, TokenKinds, own_controls
from lit_illada.generation.loop_control.mitigation import Mitigations
from lit_illada.generation.loop_control.sampler import ControlledSampler
from lit_illada.generation.reader import LogitsFn, Reader
from lit_illada.generation.sampler import Sampler


@torch.no_grad()
def generate(
    logits_fn: LogitsFn,
    prompts: Sequence[Tensor],
    config: GenerationConfig,
    *,
    mask_token_id: int,
    stop_token_ids: Sequence[int],
    max_position_embeddings: int,
    lookback: int = 0,
    kinds: TokenKinds = NO_KINDS,
    controls: Sequence[LogitControl] = (),
    row_numbers: Sequence[int] | None = None,
    on_commit: Callable[[Commit], None] | None = None,
) -> Generation:
    """Continues every prompt until a finished block holds a stop token, or to the budget.

    A row's text is what it would be alone, whatever the lengths of the other prompts. Rows that have stopped, and rows
    whose block is full, cost no more forward passes. A mask token inside a prompt stays as it is. Sources: iLLaDA,
    arXiv 2606.25331; LLaDA, arXiv 2502.09992.

    Args:
        logits_fn: the model.
        prompts: (length,) int64 each.
        stop_token_ids: tokens that end a text.
        lookback: 1 for a model that predicts the next token from the position before it, so that a cached step
            computes that position too; else 0.
        kinds: facts about tokens that only the tokenizer knows, for the mitigations.
        controls: applied to the logits after our own, in order.
        row_numbers: the number of each prompt among those that share the seed; None: from 0.
        on_commit: called after every denoising step.

    Raises:
        UserError: when a prompt and the budget together exceed `max_position_embeddings`.
    """
    require_room(prompts, config.max_new_tokens, max_position_embeddings)
    token_ids_BT, num_padding = left_padded(prompts, mask_token_id)
    prompt_length, device = token_ids_BT.shape[1], token_ids_BT.device
    stops = torch.tensor(list(stop_token_ids), dtype=torch.int64, device=device)
    rows = list(range(len(prompts)))
    draws = Draws(config.seed, rows if row_numbers is None else row_numbers, device)

    def reader_with(cache: CachePlan) -> Reader:
        return Reader(
            logits_fn,
            cache,
            num_padding,
            prompt_length=prompt_length,
            guidance_scale=config.guidance_scale,
            mask_token_id=mask_token_id,
            lookback=lookback,
        )

    reader, trial_reader = reader_with(config.cache), reader_with(NoCache())
    mitigations = Mitigations(
        config,
        kinds,
        mask_token_id=mask_token_id,
        stop_token_ids=stops,
        num_rows=len(prompts),
        prompt_length=prompt_length,
        read=partial(trial_reader.read, step=0),
    )
    controls = [*own_controls(config.min_new_tokens, mask_token_id, stops), *mitigations.controls, *controls]
    parts = config, reader, draws, controls, prompt_length, mask_token_id, stops
    sampler = ControlledSampler(*parts, mitigations) if mitigations.is_on else Sampler(*parts)

    is_fixed = config.canvas is Canvas.fixed
    if is_fixed:
        token_ids_BT = F.pad(token_ids_BT, (0, config.max_new_tokens), value=mask_token_id)
    blocks = blocks_of(config, prompt_length)
    for last, block in enumerate(blocks):
        if not is_fixed:
            token_ids_BT = F.pad(token_ids_BT, (0, block.stop - block.start), value=mask_token_id)
        for number, step in sampler.fill(token_ids_BT, blocks[: last + 1], rows):
            if on_commit is not None:
                on_commit(step.commit(number, blocks[number], token_ids_BT, prompt_length))
        if not is_fixed:
            is_stopped_B = torch.isin(token_ids_BT[:, prompt_length:], stops).any(-1)
            rows = (~is_stopped_B).nonzero()[:, 0].tolist()
            if not rows:
                break
    num_forwards = reader.num_forwards + trial_reader.num_forwards
    return Generation.of(token_ids_BT[:, prompt_length:], stops, num_forwards, mitigations.events_of)


def blocks_of(config: GenerationConfig, prompt_length: int) -> list[slice]:
    """The columns of each block. A block also ends where a reasoning segment is cut off."""
    ends = [config.thinking_stop.cut(config.max_new_tokens), config.max_new_tokens]
    blocks, start = [], 0
    for end in sorted({end for end in ends if end is not None}):
        while start < end:
            stop = min(start + config.block_length, end)
            blocks.append(slice(prompt_length + start, prompt_length + stop))
            start = stop
    return blocks

"""Block-by-block generation of a masked-diffusion model.

Shapes: B rows, P columns before the first new token, T columns so far.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_illada.generation.cache import NoCache
from lit_illada.generation.canvas import Commit, Generation, check_lengths, left_padded
from lit_illada.generation.config import Canvas, GenerationConfig
from lit_illada.generation.draws import Draws
from lit_illada.generation.logit_controls import NO_KINDS, LogitControl, TokenKinds, default_controls
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
    block_length: int | None = None,
    kinds: TokenKinds = NO_KINDS,
    controls: Sequence[LogitControl] = (),
    row_numbers: Sequence[int] | None = None,
    on_commit: Callable[[Commit], None] | None = None,
) -> Generation:
    """Continue every prompt until a finished block contains a stop token or `max_new_tokens` are generated.

    The text of a row does not depend on the other prompts. Rows that have stopped and rows whose block is full cost no
    further forward passes. Mask tokens inside a prompt are not replaced. Raises UserError if a prompt and
    `max_new_tokens` together exceed `max_position_embeddings`. Sources: iLLaDA, arXiv 2606.25331; LLaDA, 2502.09992.

    Args:
        prompts: (length,) int64 each.
        lookback: 1 for a model that predicts the next token from the position before it, else 0.
        block_length: tokens per block of a model with block-causal attention, which replaces that of the config; None:
            attention sees the whole row.
        kinds: properties of tokens that loop control needs.
        controls: applied to the logits after the built-in controls, in order.
        row_numbers: number of each prompt, which selects its random stream; None: 0, 1, ….
        on_commit: called after every denoising step.
    """
    check_lengths(prompts, config.max_new_tokens, max_position_embeddings)
    if block_length is not None:
        config = config.with_block_length(block_length)
    token_ids_BT, num_padding = left_padded(prompts, mask_token_id)
    prompt_length, device = token_ids_BT.shape[1], token_ids_BT.device
    stops = torch.tensor(list(stop_token_ids), dtype=torch.int64, device=device)
    draws = Draws(config.seed, range(len(prompts)) if row_numbers is None else row_numbers, device)

    blocks = None if block_length is None else _column_blocks(config, prompt_length, device)
    reader, trial_reader = _readers(logits_fn, config, num_padding, prompt_length, mask_token_id, lookback, blocks)
    mitigations = Mitigations(
        config,
        kinds,
        mask_token_id=mask_token_id,
        stop_token_ids=stops,
        num_rows=len(prompts),
        prompt_length=prompt_length,
        read=partial(trial_reader.read, step=0),
    )
    controls = [*default_controls(config.min_new_tokens, mask_token_id, stops), *mitigations.controls, *controls]
    parts = config, reader, draws, controls, prompt_length, mask_token_id, stops
    sampler = ControlledSampler(*parts, mitigations) if mitigations.is_on else Sampler(*parts)
    token_ids_BT = _fill_blocks(sampler, token_ids_BT, on_commit)
    num_forwards = reader.num_forwards + trial_reader.num_forwards
    return Generation.of(token_ids_BT[:, prompt_length:], stops, num_forwards, mitigations.events_of)


def _readers(
    logits_fn: LogitsFn,
    config: GenerationConfig,
    num_padding: Sequence[int],
    prompt_length: int,
    mask_token_id: int,
    lookback: int,
    blocks: Tensor | None,
) -> tuple[Reader, Reader]:
    """The reader of the denoising steps, and one for trials of an early answer.

    Trials must not disturb the cache of the block.
    """
    reader_with = partial(
        Reader,
        logits_fn,
        num_padding=num_padding,
        prompt_length=prompt_length,
        guidance_scale=config.guidance_scale,
        mask_token_id=mask_token_id,
        lookback=lookback,
        blocks=blocks,
    )
    return reader_with(config.cache), reader_with(NoCache())


def _fill_blocks(sampler: Sampler, token_ids_BT: Tensor, on_commit: Callable[[Commit], None] | None) -> Tensor:
    """Denoise block after block; returns prompts and continuations, (B, T)."""
    config, prompt_length = sampler.config, sampler.prompt_length
    is_fixed = config.canvas is Canvas.fixed
    if is_fixed:
        token_ids_BT = F.pad(token_ids_BT, (0, config.max_new_tokens), value=sampler.mask_token_id)
    blocks = blocks_of(config, prompt_length)
    rows = list(range(len(token_ids_BT)))
    for last, block in enumerate(blocks):
        if not is_fixed:
            token_ids_BT = F.pad(token_ids_BT, (0, block.stop - block.start), value=sampler.mask_token_id)
        for number, step in sampler.fill(token_ids_BT, blocks[: last + 1], rows):
            if on_commit is not None:
                on_commit(step.commit(number, blocks[number], token_ids_BT, prompt_length))
        if not is_fixed:  # rows with a stop token take part in no further block
            is_stopped_B = torch.isin(token_ids_BT[:, prompt_length:], sampler.stop_token_ids).any(-1)
            rows = (~is_stopped_B).nonzero()[:, 0].tolist()
            if not rows:
                break
    return token_ids_BT


def blocks_of(config: GenerationConfig, prompt_length: int) -> list[slice]:
    """The columns of each block. A block also ends where a hard `thinking_stop` closes reasoning segments."""
    ends = [config.thinking_stop.cut(config.max_new_tokens), config.max_new_tokens]
    blocks, start = [], 0
    for end in sorted({end for end in ends if end is not None}):
        while start < end:
            stop = min(start + config.block_length, end)
            blocks.append(slice(prompt_length + start, prompt_length + stop))
            start = stop
    return blocks


def _column_blocks(config: GenerationConfig, prompt_length: int, device: torch.device) -> Tensor:
    """(T,) int64: block of each column. The prompt is divided backwards from its end, as in training."""
    columns = torch.arange(prompt_length + config.max_new_tokens)
    starts = torch.tensor([block.start for block in blocks_of(config, prompt_length)])
    context = (columns - prompt_length).div(config.block_length, rounding_mode="floor")
    return torch.where(columns < prompt_length, context, torch.bucketize(columns, starts, right=True) - 1).to(device)

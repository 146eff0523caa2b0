"""How does a masked-diffusion model write text? Block by block: [M]s are denoised, then the next block's, or none.

Shapes: B rows, A of them in a step, P columns before the first new token, T tokens so far, L tokens a block, M masked
tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_illada.generation.caching import NoCache
from lit_illada.generation.canvas import Commit, Generation, left_padded, require_room
from lit_illada.generation.config import Canvas, GenerationConfig
from lit_illada.generation.control import NO_KINDS, ForbidTokens, LogitControl, MinNewTokens, Place, TokenKinds
from lit_illada.generation.draws import Draws
from lit_illada.generation.mitigation import Mitigations
from lit_illada.generation.proposal import Proposals, propose
from lit_illada.generation.reader import LogitsFn, Reader


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
    """Continues every prompt, (length,) int64 each, until a finished block holds a stop token, or to the budget.

    The prompts' lengths may differ: a row's text is what it would be alone. Rows that have stopped, or whose block is
    full, cost no more. A [M] inside a prompt stays as it is. lookback: 1 for a model that predicts the next token from
    the place before it, so that a cache leaves that place in. kinds: what the mitigations must know of the tokens.
    controls: applied after our own, in order. row_numbers: of the prompts among those that share a seed;
    None: from 0. Raises UserError when a prompt and the budget together exceed `max_position_embeddings`. Source:
    iLLaDA, arXiv 2606.25331; LLaDA, arXiv 2502.09992.
    """
    require_room(prompts, config.max_new_tokens, max_position_embeddings)
    token_ids_BT, num_padding = left_padded(prompts, mask_token_id)
    prompt_length, device = token_ids_BT.shape[1], token_ids_BT.device
    stops = torch.tensor(list(stop_token_ids), dtype=torch.int64, device=device)
    reader, trial_reader = (
        Reader(
            logits_fn,
            cache,
            num_padding,
            prompt_length=prompt_length,
            guidance_scale=config.guidance_scale,
            mask_token_id=mask_token_id,
            lookback=lookback,
        )
        for cache in (config.cache, NoCache())
    )
    mitigations = Mitigations(
        config,
        kinds,
        mask_token_id=mask_token_id,
        stop_token_ids=stops,
        num_rows=len(prompts),
        prompt_length=prompt_length,
        read=partial(trial_reader.read, step=0),
    )
    sampler = _Sampler(
        config,
        reader,
        Draws(config.seed, range(len(prompts)) if row_numbers is None else row_numbers, device),
        [*own_controls(config, mask_token_id, stops), *mitigations.controls, *controls],
        mitigations,
        prompt_length,
        mask_token_id,
        stops,
    )
    is_fixed = config.canvas is Canvas.fixed
    if is_fixed:
        token_ids_BT = F.pad(token_ids_BT, (0, config.max_new_tokens), value=mask_token_id)
    rows = list(range(len(prompts)))
    blocks = blocks_of(config, prompt_length)
    for last, block in enumerate(blocks):
        if not is_fixed:
            token_ids_BT = F.pad(token_ids_BT, (0, block.stop - block.start), value=mask_token_id)
        for number, step in sampler.write(token_ids_BT, blocks[: last + 1], rows):
            if on_commit is not None:
                on_commit(step.told(number, prompt_length, token_ids_BT, blocks[number]))
        if not is_fixed:
            is_stopped_B = torch.isin(token_ids_BT[:, prompt_length:], stops).any(-1)
            rows = (~is_stopped_B).nonzero()[:, 0].tolist()
            if not rows:
                break
    num_forwards = reader.num_forwards + trial_reader.num_forwards
    return Generation.of(token_ids_BT[:, prompt_length:], stops, num_forwards, mitigations.events_of)


def blocks_of(config: GenerationConfig, prompt_length: int) -> list[slice]:
    """The columns of each block; one ends where a thought is cut off, the last where the budget does."""
    ends = [config.thinking_stop.cut(config.max_new_tokens), config.max_new_tokens]
    blocks, start = [], 0
    for end in sorted({end for end in ends if end is not None}):
        while start < end:
            stop = min(start + config.block_length, end)
            blocks.append(slice(prompt_length + start, prompt_length + stop))
            start = stop
    return blocks


def own_controls(config: GenerationConfig, mask_token_id: int, stop_token_ids: Tensor) -> list[LogitControl]:
    """What every generation forbids, and what the config puts off."""
    controls: list[LogitControl] = [ForbidTokens(torch.tensor([mask_token_id], device=stop_token_ids.device))]
    if config.min_new_tokens > 0:
        controls.append(MinNewTokens(config.min_new_tokens, stop_token_ids))
    return controls


@dataclass(frozen=True, eq=False)
class _Step:
    """What a denoising step did to the rows that took part, `index`: (A,); the rest is (A, L). closed: where a thought
    was brought to its end, the column by the batch's row."""

    step: int
    index: Tensor
    proposals: Proposals
    is_committed: Tensor
    is_remasked: Tensor
    closed: dict[int, int]

    def told(self, block_number: int, prompt_length: int, token_ids_BT: Tensor, block: slice) -> Commit:
        def spread(values_AL: Tensor) -> Tensor:
            values_BT = values_AL.new_zeros(token_ids_BT.shape)
            values_BT[self.index, block] = values_AL
            return values_BT

        return Commit(
            block_number,
            self.step,
            prompt_length,
            token_ids_BT,
            spread(self.is_committed),
            spread(self.is_remasked),
            spread(self.proposals.confidence * self.is_committed),
            spread(self.proposals.entropy * self.is_committed),
        )


@dataclass(frozen=True, eq=False)
class _Sampler:
    """What stays the same from block to block."""

    config: GenerationConfig
    reader: Reader
    draws: Draws
    controls: Sequence[LogitControl]
    mitigations: Mitigations
    prompt_length: int
    mask_token_id: int
    stop_token_ids: Tensor

    def write(self, token_ids_BT: Tensor, blocks: Sequence[slice], rows: list[int]) -> Iterator[tuple[int, _Step]]:
        """Fills the last of the blocks of these rows in place, then what the mitigations have masked again, there and
        in earlier blocks. Gives the block's number with each step."""
        is_fixed, last = self.config.canvas is Canvas.fixed, blocks[-1]
        is_due_BT = torch.zeros_like(token_ids_BT, dtype=torch.bool)
        is_due_BT[rows, last] = True
        again, first = rows, len(blocks) - 1
        while True:
            for number, block in enumerate(blocks[first:], first):
                if number > first and not is_fixed:
                    is_stopped_B = torch.isin(token_ids_BT[:, self.prompt_length : block.start], self.stop_token_ids)
                    is_due_BT[is_stopped_B.any(-1)] = False
                visible_BT = token_ids_BT if is_fixed else token_ids_BT[:, : block.stop]
                while (is_masked_BL := _alike(is_due_BT[:, block])) is not None:
                    is_due_BT[:, block] &= ~is_masked_BL
                    for step in self.denoise(visible_BT, block, is_masked_BL):
                        for row, column in step.closed.items():
                            is_due_BT[row, column + 1 : last.stop] = True
                            token_ids_BT[row, column + 1 : last.stop] = self.mask_token_id
                        yield number, step
            remasked_BT = self.mitigations.remasked(token_ids_BT, last, again)
            if remasked_BT is None:
                break
            is_due_BT = remasked_BT
            again = is_due_BT.any(-1).nonzero()[:, 0].tolist()
            start = int(is_due_BT.any(0).nonzero()[0, 0])
            first = next(number for number, block in enumerate(blocks) if start < block.stop)
        self.mitigations.finished(token_ids_BT, last, rows)

    def denoise(self, token_ids_BT: Tensor, block: slice, is_masked_BL: Tensor) -> Iterator[_Step]:
        """Fills these places of the block in place, step by step; of every row as many, or none."""
        config = self.config
        rows = is_masked_BL.any(-1).nonzero()[:, 0].tolist()
        num_steps = config.steps_for(int(is_masked_BL.sum(-1).max()))
        is_due_BL, is_masked_BL = is_masked_BL, is_masked_BL.clone()
        written_confidence_BL = torch.zeros_like(is_masked_BL, dtype=torch.float64)
        for step in range(num_steps):
            if not config.remask.is_on:
                rows = is_masked_BL.any(-1).nonzero()[:, 0].tolist()
            if not rows:
                return
            steps_left, draws = num_steps - step, self.draws.of(rows)
            index = torch.tensor(rows, device=token_ids_BT.device)
            is_masked_AL = is_masked_BL[index]
            proposals = self._propose(token_ids_BT[index], is_masked_AL, rows, index, block, step)
            is_committed_AL = config.commit_rule(proposals, steps_left, draws)
            is_written_AL = is_due_BL[index] & ~is_masked_AL
            is_remasked_AL = config.remask(written_confidence_BL[index], is_written_AL, steps_left, num_steps, draws)
            closed = self.mitigations.committed(rows, block, proposals.token_ids, is_committed_AL)
            for row, column in closed.items():
                behind = rows.index(row), slice(column + 1 - block.start, None)
                is_committed_AL[behind] = False
                is_remasked_AL[behind] = ~is_masked_AL[behind]
            block_ids_AL = proposals.token_ids.where(is_committed_AL, token_ids_BT[index, block])
            token_ids_BT[index, block] = block_ids_AL.masked_fill(is_remasked_AL, self.mask_token_id)
            is_masked_BL[index] = (is_masked_AL & ~is_committed_AL) | is_remasked_AL
            if config.remask.is_on:
                written_AL = proposals.confidence.where(is_committed_AL, written_confidence_BL[index])
                written_confidence_BL[index] = written_AL
            if closed:
                is_masked_BL[list(closed)] = False
                rows = [row for row in rows if row not in closed]
            yield _Step(step, index, proposals, is_committed_AL, is_remasked_AL, closed)

    def _propose(
        self, token_ids_AT: Tensor, is_masked_AL: Tensor, rows: list[int], index: Tensor, block: slice, step: int
    ) -> Proposals:
        # float64 is for the noise's tail; without noise it would only cost time
        dtype = torch.float32 if self.config.temperature == 0 else torch.float64
        logits_MV = self.reader.read(token_ids_AT, is_masked_AL, rows, block, step).to(dtype, copy=True)
        row_M, column_M = is_masked_AL.nonzero(as_tuple=True)
        place = Place(token_ids_AT, row_M, column_M + block.start, self.prompt_length, index)
        for control in self.controls:
            logits_MV = control(logits_MV, place)
        proposals = propose(
            logits_MV,
            is_masked_AL,
            self.draws.of(rows),
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            uncertain_token_ids=self.stop_token_ids if self.config.zero_stop_confidence else self.stop_token_ids[:0],
        )
        return self.mitigations.heated(proposals, logits_MV, rows, block, self.draws)


def _alike(is_due_BL: Tensor) -> Tensor | None:
    """What is due of the rows of which most is, as many places of each: their steps depend on no other row."""
    num_due_B = is_due_BL.sum(-1)
    most = int(num_due_B.max())
    return is_due_BL & (num_due_B == most)[:, None] if most else None

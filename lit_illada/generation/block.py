"""How does a masked-diffusion model write text? Block by block: [M]s are denoised, then the next block's, or none.

Shapes: B rows, A of them in a step, P columns before the first new token, T tokens so far, L tokens a block, M masked
tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_illada.generation.canvas import Commit, Generation, left_padded, require_room
from lit_illada.generation.config import Canvas, GenerationConfig
from lit_illada.generation.control import ForbidTokens, LogitControl, MinNewTokens, Place
from lit_illada.generation.draws import Draws
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
    controls: Sequence[LogitControl] = (),
    row_numbers: Sequence[int] | None = None,
    on_commit: Callable[[Commit], None] | None = None,
) -> Generation:
    """Continues every prompt, (length,) int64 each, until a finished block holds a stop token, or to the budget.

    The prompts' lengths may differ: a row's text is what it would be alone. Rows that have stopped, or whose block is
    full, cost no more. A [M] inside a prompt stays as it is. lookback: 1 for a model that predicts the next token from
    the place before it, so that a cache leaves that place in. controls: applied after our own, in order. row_numbers:
    of the prompts among those that share a seed; None: from 0. Raises UserError when a prompt and the budget together
    exceed `max_position_embeddings`. Source: iLLaDA, arXiv 2606.25331; LLaDA, arXiv 2502.09992.
    """
    require_room(prompts, config.max_new_tokens, max_position_embeddings)
    token_ids_BT, num_padding = left_padded(prompts, mask_token_id)
    prompt_length, device = token_ids_BT.shape[1], token_ids_BT.device
    stops = torch.tensor(list(stop_token_ids), dtype=torch.int64, device=device)
    sampler = _Sampler(
        config,
        Reader(
            logits_fn,
            config.cache,
            num_padding,
            prompt_length=prompt_length,
            guidance_scale=config.guidance_scale,
            mask_token_id=mask_token_id,
            lookback=lookback,
        ),
        Draws(config.seed, range(len(prompts)) if row_numbers is None else row_numbers, device),
        [*own_controls(config, mask_token_id, stops), *controls],
        prompt_length,
        mask_token_id,
        stops if config.zero_stop_confidence else stops[:0],
    )
    is_fixed = config.canvas is Canvas.fixed
    if is_fixed:
        token_ids_BT = F.pad(token_ids_BT, (0, config.max_new_tokens), value=mask_token_id)
    rows = list(range(len(prompts)))
    for number, start in enumerate(range(0, config.max_new_tokens, config.block_length)):
        block_length = min(config.block_length, config.max_new_tokens - start)
        block = slice(prompt_length + start, prompt_length + start + block_length)
        if not is_fixed:
            token_ids_BT = F.pad(token_ids_BT, (0, block_length), value=mask_token_id)
        for step in sampler.denoise(token_ids_BT, block, rows):
            if on_commit is not None:
                on_commit(step.told(number, prompt_length, token_ids_BT, block))
        if not is_fixed:
            is_stopped_B = torch.isin(token_ids_BT[:, prompt_length:], stops).any(-1)
            rows = (~is_stopped_B).nonzero()[:, 0].tolist()
            if not rows:
                break
    return Generation.of(token_ids_BT[:, prompt_length:], stops, sampler.reader.num_forwards)


def own_controls(config: GenerationConfig, mask_token_id: int, stop_token_ids: Tensor) -> list[LogitControl]:
    """What every generation forbids, and what the config puts off."""
    controls: list[LogitControl] = [ForbidTokens(torch.tensor([mask_token_id], device=stop_token_ids.device))]
    if config.min_new_tokens > 0:
        controls.append(MinNewTokens(config.min_new_tokens, stop_token_ids))
    return controls


@dataclass(frozen=True, eq=False)
class _Step:
    """What a denoising step did to the rows that took part, `index`: (A,); the rest is (A, L)."""

    step: int
    index: Tensor
    proposals: Proposals
    is_committed: Tensor
    is_remasked: Tensor

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
    prompt_length: int
    mask_token_id: int
    uncertain_token_ids: Tensor

    def denoise(self, token_ids_BT: Tensor, block: slice, rows: list[int]) -> Iterator[_Step]:
        """Fills the block of these rows in place, step by step."""
        config = self.config
        block_length = block.stop - block.start
        num_steps = config.steps_for(block_length)
        is_masked_BL = torch.zeros(len(token_ids_BT), block_length, dtype=torch.bool, device=token_ids_BT.device)
        is_masked_BL[rows] = True
        written_confidence_BL = torch.zeros_like(is_masked_BL, dtype=torch.float64)
        for step in range(num_steps):
            if not config.remask.is_on:
                rows = is_masked_BL.any(-1).nonzero()[:, 0].tolist()
            if not rows:
                return
            steps_left, draws = num_steps - step, self.draws.of(rows)
            index = torch.tensor(rows, device=token_ids_BT.device)
            is_masked_AL = is_masked_BL[index]
            proposals = self._propose(token_ids_BT[index], is_masked_AL, rows, block, step)
            is_committed_AL = config.commit_rule(proposals, steps_left, draws)
            is_remasked_AL = config.remask(written_confidence_BL[index], ~is_masked_AL, steps_left, num_steps, draws)
            block_ids_AL = proposals.token_ids.where(is_committed_AL, token_ids_BT[index, block])
            token_ids_BT[index, block] = block_ids_AL.masked_fill(is_remasked_AL, self.mask_token_id)
            is_masked_BL[index] = (is_masked_AL & ~is_committed_AL) | is_remasked_AL
            if config.remask.is_on:
                written_AL = proposals.confidence.where(is_committed_AL, written_confidence_BL[index])
                written_confidence_BL[index] = written_AL
            yield _Step(step, index, proposals, is_committed_AL, is_remasked_AL)

    def _propose(
        self, token_ids_AT: Tensor, is_masked_AL: Tensor, rows: list[int], block: slice, step: int
    ) -> Proposals:
        logits_MV = self.reader.read(token_ids_AT, is_masked_AL, rows, block, step).to(torch.float64, copy=True)
        row_M, column_M = is_masked_AL.nonzero(as_tuple=True)
        place = Place(token_ids_AT, row_M, column_M + block.start, self.prompt_length)
        for control in self.controls:
            logits_MV = control(logits_MV, place)
        return propose(
            logits_MV,
            is_masked_AL,
            self.draws.of(rows),
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            uncertain_token_ids=self.uncertain_token_ids,
        )

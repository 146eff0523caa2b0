"""The denoising loop of one block: propose, commit, remask, repeat until no position is masked.

Source: LLaDA, arXiv 2502.09992, algorithm 5; iLLaDA, arXiv 2606.25331. Shapes: B rows of the batch, A of them active in
a step, T columns (padding, prompt and text so far), L columns of the block, M masked positions of the block in
row-major order, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_illada.generation.canvas import Commit
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.draws import Draws
from lit_illada.generation.logit_controls import LogitControl, Positions
from lit_illada.generation.proposals import Proposals, propose
from lit_illada.generation.reader import Reader


@dataclass(frozen=True, eq=False)
class Step:
    """One denoising step of a block: the model's proposals and the positions that change."""

    number: int
    """Index of the step within its block, from 0."""
    rows: list[int]
    """The A active rows, as indices into the batch."""
    proposals: Proposals
    """Proposed tokens and their confidence, (A, L)."""
    is_committed: Tensor
    """(A, L) bool, masked positions that receive their proposed token."""
    is_remasked: Tensor
    """(A, L) bool, positions committed in an earlier step that become masked again."""
    closed: Mapping[int, int] = field(default_factory=dict)
    """Column of the closing token by row, where loop control closed a reasoning segment; such rows leave the block."""

    def commit(self, block_number: int, block: slice, token_ids_BT: Tensor, prompt_length: int) -> Commit:
        """The step as `on_commit` callbacks receive it, spread over the whole batch."""
        index = torch.tensor(self.rows, device=token_ids_BT.device)

        def spread(values_AL: Tensor) -> Tensor:
            values_BT = values_AL.new_zeros(token_ids_BT.shape)
            values_BT[index, block] = values_AL
            return values_BT

        return Commit(
            block_number,
            self.number,
            prompt_length,
            token_ids_BT,
            spread(self.is_committed),
            spread(self.is_remasked),
            spread(self.proposals.confidence * self.is_committed),
            spread(self.proposals.entropy * self.is_committed),
        )


@dataclass(frozen=True, eq=False)
class Sampler:
    """The plain sampler. `loop_control.sampler` wraps it with the mitigations of reasoning loops."""

    config: GenerationConfig
    reader: Reader
    """Calls the model, with cache and guidance."""
    draws: Draws
    """One random stream per row."""
    controls: Sequence[LogitControl]
    """Applied to the logits in order, before the proposal."""
    prompt_length: int
    """Columns before the first new token."""
    mask_token_id: int
    stop_token_ids: Tensor

    def fill(self, token_ids_BT: Tensor, blocks: Sequence[slice], rows: list[int]) -> Iterator[tuple[int, Step]]:
        """Denoises the last of `blocks` in these rows, in place; yields each step with its block's index."""
        is_masked_BL = torch.zeros_like(token_ids_BT[:, blocks[-1]], dtype=torch.bool)
        is_masked_BL[rows] = True
        for step in self.denoise(token_ids_BT, blocks[-1], is_masked_BL):
            yield len(blocks) - 1, step

    def denoise(self, token_ids_BT: Tensor, block: slice, is_due_BL: Tensor) -> Iterator[Step]:
        """Fills the due positions of a block in place, step by step; every row has equally many of them, or none."""
        config, draws = self.config, self.draws
        rows, is_masked_BL = _rows_with(is_due_BL), is_due_BL.clone()
        confidence_BL = torch.zeros_like(is_due_BL, dtype=torch.float64)  # of each token when it was committed
        num_steps = config.steps_for(int(is_due_BL.sum(-1).max()))
        for number, steps_left in enumerate(range(num_steps, 0, -1)):
            if not config.remask.is_on:  # a full row needs no more forward passes, unless some tokens are remasked
                rows = _rows_with(is_masked_BL)
            if not rows:
                return
            index = torch.tensor(rows, device=token_ids_BT.device)
            is_masked_AL, is_written_AL = is_masked_BL[index], (is_due_BL & ~is_masked_BL)[index]
            proposals = self.propose(token_ids_BT[index], is_masked_AL, rows, block, number)
            num_commits_A = config.commit_schedule(is_masked_AL.sum(-1), steps_left, num_steps)
            is_committed_AL = config.commit_rule(proposals, steps_left, draws.of(rows), num_commits_A)
            is_remasked_AL = config.remask(confidence_BL[index], is_written_AL, steps_left, num_steps, draws.of(rows))
            step = self.revise(Step(number, rows, proposals, is_committed_AL, is_remasked_AL), is_masked_AL, block)
            block_ids_AL = proposals.token_ids.where(step.is_committed, token_ids_BT[index, block])
            token_ids_BT[index, block] = block_ids_AL.masked_fill(step.is_remasked, self.mask_token_id)
            is_masked_BL[index] = (is_masked_AL & ~step.is_committed) | step.is_remasked
            if config.remask.is_on:
                confidence_BL[index] = proposals.confidence.where(step.is_committed, confidence_BL[index])
            if step.closed:
                is_masked_BL[list(step.closed)] = False
                rows = [row for row in rows if row not in step.closed]
            yield step

    def propose(
        self, token_ids_AT: Tensor, is_masked_AL: Tensor, rows: list[int], block: slice, step: int
    ) -> Proposals:
        """Proposes a token for every masked position of the block, from the controlled logits."""
        # float64 resolves the tail of the Gumbel noise; without noise it would only cost time
        dtype = torch.float32 if self.config.temperature == 0 else torch.float64
        logits_MV = self.reader.read(token_ids_AT, is_masked_AL, rows, block, step).to(dtype, copy=True)
        row_M, column_M = is_masked_AL.nonzero(as_tuple=True)
        batch_rows = torch.tensor(rows, device=token_ids_AT.device)
        positions = Positions(token_ids_AT, row_M, column_M + block.start, self.prompt_length, batch_rows)
        for control in self.controls:
            logits_MV = control(logits_MV, positions)
        return self.draw(logits_MV, is_masked_AL, rows, block)

    def draw(self, logits_MV: Tensor, is_masked_AL: Tensor, rows: list[int], block: slice) -> Proposals:
        """Draws the proposed tokens from controlled logits. Loop control overrides it to raise the temperature."""
        return propose(
            logits_MV,
            is_masked_AL,
            self.draws.of(rows),
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            uncertain_token_ids=self.stop_token_ids if self.config.zero_stop_confidence else self.stop_token_ids[:0],
        )

    def revise(self, step: Step, is_masked_AL: Tensor, block: slice) -> Step:
        """Returns the step to apply. Loop control overrides it to close reasoning segments."""
        return step


def _rows_with(is_true_BL: Tensor) -> list[int]:
    """Indices of the rows with at least one true position."""
    return is_true_BL.any(-1).nonzero()[:, 0].tolist()

"""A sampler with mitigations of reasoning loops: closes reasoning segments and rewrites looped spans.

Shapes as in `generation.sampler`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_illada.generation.config import Canvas
from lit_illada.generation.loop_control.mitigation import Mitigations
from lit_illada.generation.proposals import Proposals
from lit_illada.generation.sampler import Sampler, Step


@dataclass(frozen=True, eq=False)
class ControlledSampler(Sampler):
    """The plain sampler, whose blocks may be reopened by the mitigations."""

    mitigations: Mitigations

    def fill(self, token_ids_BT: Tensor, blocks: Sequence[slice], rows: list[int]) -> Iterator[tuple[int, Step]]:
        """Denoises the last block, then everything that the mitigations mask again, there and in earlier blocks."""
        is_due_BT = torch.zeros_like(token_ids_BT, dtype=torch.bool)
        is_due_BT[rows, blocks[-1]] = True
        first, revised = len(blocks) - 1, rows
        while True:
            for number, block in enumerate(blocks[first:], first):
                if number > first:
                    self._drop_stopped(is_due_BT, token_ids_BT, block)
                for step in self._fill_due(token_ids_BT, is_due_BT, block, blocks[-1]):
                    yield number, step
            remasked_BT = self.mitigations.remasked(token_ids_BT, blocks[-1], revised)
            if remasked_BT is None:
                break
            is_due_BT = remasked_BT
            revised = is_due_BT.any(-1).nonzero()[:, 0].tolist()
            start = int(is_due_BT.any(0).nonzero()[0, 0])
            first = next(number for number, block in enumerate(blocks) if start < block.stop)
        self.mitigations.finished(token_ids_BT, blocks[-1], rows)

    def _drop_stopped(self, is_due_BT: Tensor, token_ids_BT: Tensor, block: slice) -> None:
        """Appended blocks behind a stop token are not rewritten."""
        if self.config.canvas is not Canvas.fixed:
            before_BN = token_ids_BT[:, self.prompt_length : block.start]
            is_due_BT[torch.isin(before_BN, self.stop_token_ids).any(-1)] = False

    def _fill_due(self, token_ids_BT: Tensor, is_due_BT: Tensor, block: slice, last: slice) -> Iterator[Step]:
        """Denoises the due positions of one block, rows with equally many of them together."""
        visible_BT = token_ids_BT if self.config.canvas is Canvas.fixed else token_ids_BT[:, : block.stop]
        while (is_due_BL := _largest_group(is_due_BT[:, block])) is not None:
            is_due_BT[:, block] &= ~is_due_BL
            for step in self.denoise(visible_BT, block, is_due_BL):
                for row, column in step.closed.items():
                    # what was written behind a closed segment assumed that the segment continues
                    is_due_BT[row, column + 1 : last.stop] = True
                    token_ids_BT[row, column + 1 : last.stop] = self.mask_token_id
                yield step

    def draw(self, logits_MV: Tensor, is_masked_AL: Tensor, rows: list[int], block: slice) -> Proposals:
        proposals = super().draw(logits_MV, is_masked_AL, rows, block)
        return self.mitigations.resample(proposals, logits_MV, rows, block, self.draws)

    def revise(self, step: Step, is_masked_AL: Tensor, block: slice) -> Step:
        closed = self.mitigations.committed(step.rows, block, step.proposals.token_ids, step.is_committed)
        for row, column in closed.items():
            behind = step.rows.index(row), slice(column + 1 - block.start, None)
            step.is_committed[behind] = False
            step.is_remasked[behind] = ~is_masked_AL[behind]
        return replace(step, closed=closed)


def _largest_group(is_due_BL: Tensor) -> Tensor | None:
    """The due positions of the rows that have most of them; None when nothing is due.

    Rows with equally many due positions take the same steps, so a row's text does not depend on its batch.
    """
    num_due_B = is_due_BL.sum(-1)
    most = int(num_due_B.max())
    return is_due_BL & (num_due_B == most)[:, None] if most else None

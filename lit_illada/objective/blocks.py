"""Blocks of block diffusion (BD3-LM, arXiv 2503.09573): the division of rows, and counts within blocks.

A model predicts the masked tokens of a block from the other tokens of the block and from the clean blocks before it.
Blocks are counted from the start of each run of maskable tokens of a segment: from the document's start in pretraining,
from the completion's start in fine-tuning and scoring. Context is divided backwards from the end of its run, so that
the first of its blocks may be short. A prompt thus ends with a complete block, after which generation begins a new one.
No block spans two segments, or context and completion.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lit_illada.runtime.lazy import Tensor, torch

if TYPE_CHECKING:
    from lit_illada.batch import Layout, TokenBatch


def in_blocks(batch: TokenBatch, block_length: int | None) -> TokenBatch:
    """The batch with its blocks in the layout; unchanged for None."""
    if block_length is None:
        return batch
    blocks_BT = divide(batch.layout, batch.is_maskable, block_length)
    return replace(batch, layout=replace(batch.layout, blocks=blocks_BT))


def divide(layout: Layout, is_maskable_BT: Tensor, block_length: int) -> Tensor:
    """(B, T) int64: number of each token's block, from 0 in each row, at most `block_length` tokens per block."""
    is_changed_BT = is_maskable_BT.diff(dim=1, prepend=is_maskable_BT[:, :1]).bool()
    is_run_start_BT = (layout.position_ids == 0) | is_changed_BT
    # the last token of a run precedes the start of the next
    is_run_end_BT = torch.nn.functional.pad(is_run_start_BT[:, 1:], (0, 1), value=True)
    after_BT = offsets(is_run_end_BT.flip(1)).flip(1)
    is_cut_BT = torch.where(is_maskable_BT, offsets(is_run_start_BT), after_BT + 1) % block_length == 0
    return (is_run_start_BT | is_cut_BT).cumsum(1) - 1


def offsets(is_start_BT: Tensor) -> Tensor:
    """(B, T) int64: number of tokens since the last start; the first token of a row must be one."""
    index_T = torch.arange(is_start_BT.shape[1], device=is_start_BT.device)
    return index_T - (index_T * is_start_BT).cummax(1).values


def is_block_start(blocks_BT: Tensor) -> Tensor:
    """(B, T) bool: first tokens of the blocks."""
    return blocks_BT.diff(dim=1, prepend=blocks_BT[:, :1] - 1) != 0


def count_in_block(is_true_BT: Tensor, blocks_BT: Tensor) -> Tensor:
    """(B, T) int64: true tokens of each token's block."""
    num_BN = torch.zeros_like(blocks_BT).scatter_add(1, blocks_BT, is_true_BT.long())
    return num_BN.gather(1, blocks_BT)

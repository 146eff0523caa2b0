"""Attention within segments: which keys each query sees, and the pass through the kernel.

Shapes: B rows, T tokens per row, H query heads, K key-value heads, G = H / K query heads per key-value head, D head
width, C columns with keys: T, or more where a cache holds the others.
"""

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lit_illada.batch import Layout
from lit_illada.model.config import AttentionKernel
from lit_illada.model.kernel_choice import LONGEST_MATMUL_ROW, SEGMENT_KERNELS, choose_kernel, choose_masked_kernel
from lit_illada.model.kernels import SegmentKernel, flex, matmul, sdpa, segment_kernel

log = logging.getLogger(__name__)

# flex_attention multiplies tiles of at least 16 numbers
NARROWEST_FLEX_HEAD = 16


@dataclass(frozen=True, eq=False)
class Attention:
    """Attention of one forward pass: planned once, then used by every layer."""

    kernel: AttentionKernel
    """Kernel to run, never `auto`."""
    is_causal: bool
    """Whether the kernel itself applies the causal mask."""
    mask: Tensor | None
    """(B, 1, T, C): keys (dim 3) that each query (dim 2) attends to, bool for `sdpa`, additive 0 or −inf for `matmul`;
    None: whole rows, or a kernel without mask."""
    cu_seqlens: Tensor
    """(S + 1,) int32, boundaries of the S segments."""
    max_seqlen: int
    """Tokens of the longest segment."""
    segment_kernel: SegmentKernel | None = None
    """Function of a kernel of SEGMENT_KERNELS; None for others."""
    flex_tiles: Any = None
    """BlockMask of flex_attention, which skips the tiles without a visible key; None for other kernels."""

    @classmethod
    def plan(
        cls,
        wanted: AttentionKernel,
        layout: Layout,
        is_causal: bool,
        device: torch.device,
        dtype: torch.dtype,
        head_dim: int,
        window: slice | None = None,
    ) -> "Attention":
        """Chooses the kernel and builds its mask.

        window: columns of the layout with queries; None: all. Raises UserError if the wanted kernel cannot run.
        """
        num_columns = layout.position_ids.shape[1]
        is_short = num_columns <= LONGEST_MATMUL_ROW
        if layout.blocks is not None or layout.visible_later is not None:
            fits_flex = bool(layout.num_noisy) and head_dim >= NARROWEST_FLEX_HEAD
            kernel = choose_masked_kernel(wanted, device.type, dtype, is_short, fits_flex)
        else:
            kernel = choose_kernel(wanted, device.type, dtype, is_short, head_dim)
        if window is not None:
            return cls._plan_window(kernel, layout, is_causal, device, dtype, window)
        if kernel in SEGMENT_KERNELS:
            return cls(kernel, is_causal, None, layout.cu_seqlens, layout.max_seqlen, segment_kernel(kernel))
        if kernel is AttentionKernel.FLEX:
            tiles = _flex_tiles(layout, is_causal)
            return cls(kernel, is_causal, None, layout.cu_seqlens, layout.max_seqlen, flex_tiles=tiles)
        mask = None
        if kernel is AttentionKernel.MATMUL and (is_causal or not layout.is_whole_rows):
            mask = torch.zeros((), dtype=dtype, device=device).where(visible_tokens(layout, is_causal), float("-inf"))
        elif kernel is AttentionKernel.SDPA and not layout.is_whole_rows:
            mask = visible_tokens(layout, is_causal)
        return cls(kernel, is_causal, mask, layout.cu_seqlens, layout.max_seqlen)

    @classmethod
    def _plan_window(
        cls,
        kernel: AttentionKernel,
        layout: Layout,
        is_causal: bool,
        device: torch.device,
        dtype: torch.dtype,
        window: slice,
    ) -> "Attention":
        """For fewer queries than keys. Segment kernels need equally many of both, and flex_attention would compile for
        every length, so SDPA replaces them."""
        if kernel in (*SEGMENT_KERNELS, AttentionKernel.FLEX):
            kernel = AttentionKernel.SDPA
            _log_once(f"attention over a cache runs on {kernel}: the segment kernels need as many queries as keys")
        is_last_column = window.stop - window.start == 1 and window.stop == layout.position_ids.shape[1]
        mask = None
        if not layout.is_whole_rows or (is_causal and not is_last_column):
            mask = visible_tokens(layout, is_causal, window)
            if kernel is AttentionKernel.MATMUL:
                mask = torch.zeros((), dtype=dtype, device=device).where(mask, float("-inf"))
        return cls(kernel, False, mask, layout.cu_seqlens, layout.max_seqlen)

    def attend(self, q_BTHD: Tensor, k_BCKD: Tensor, v_BCKD: Tensor) -> Tensor:
        """softmax(q·k / √D) · v over the visible keys of each query: (B, T, H, D)."""
        match self.kernel:
            case AttentionKernel.MATMUL:
                return matmul(q_BTHD, k_BCKD, v_BCKD, self.mask)
            case AttentionKernel.SDPA:
                return sdpa(q_BTHD, k_BCKD, v_BCKD, self.mask, self.is_causal)
            case AttentionKernel.FLEX:
                return flex(q_BTHD, k_BCKD, v_BCKD, self.flex_tiles)
        assert self.segment_kernel is not None
        q, k, v = (x.flatten(0, 1) for x in (q_BTHD, k_BCKD, v_BCKD))
        return self.segment_kernel(q, k, v, self.cu_seqlens, self.max_seqlen, self.is_causal).view_as(q_BTHD)


def visible_tokens(layout: Layout, is_causal: bool, window: slice = slice(0, None)) -> Tensor:
    """(B, 1, T, C) bool: whether the query (dim 2) of a column in the window attends to the key (dim 3)."""
    segments = layout.segment_ids()
    visible = segments[:, None, window, None] == segments[:, None, None, :]
    if layout.blocks is not None:
        blocks = layout.blocks
        is_noisy = torch.arange(blocks.shape[1], device=blocks.device) < layout.num_noisy
        query = blocks[:, None, window, None], is_noisy[window, None]
        visible &= sees_block(*query, blocks[:, None, None, :], is_noisy)
    if layout.visible_later is not None:
        visible &= (layout.visible_later | torch.ones_like(layout.visible_later).tril())[:, None, window]
    return visible.tril(window.start) if is_causal else visible


def sees_block(query_block: Tensor, is_query_noisy: Tensor, key_block: Tensor, is_key_noisy: Tensor) -> Tensor:
    """Bool, broadcast: whether queries see keys of the same segment, by their blocks (BD3-LM, arXiv 2503.09573).

    A noisy token sees the noisy tokens of its block and the clean tokens of earlier blocks; a clean token sees the
    clean tokens of its block and of earlier ones.
    """
    is_same, is_earlier = key_block == query_block, key_block < query_block
    return (is_same & (is_key_noisy == is_query_noisy)) | (is_earlier & ~is_key_noisy)


@cache
def _log_once(message: str) -> None:
    log.info(message)


def flex_mask(layout: Layout, is_causal: bool) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """`visible_tokens` as the mask function of flex_attention: (row, head, query, key) indices to bool."""
    segments, blocks, num_noisy = layout.segment_ids(), layout.blocks, layout.num_noisy

    def is_visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        visible = segments[row, query] == segments[row, key]
        if blocks is not None:
            is_noisy = query < num_noisy, key < num_noisy
            visible = visible & sees_block(blocks[row, query], is_noisy[0], blocks[row, key], is_noisy[1])
        return visible & (key <= query) if is_causal else visible

    return is_visible


def _flex_tiles(layout: Layout, is_causal: bool) -> Any:
    """The BlockMask of a layout, computed once per forward pass by a compiled function."""
    torch_flex = importlib.import_module("torch.nn.attention.flex_attention")
    (B, T), device = layout.position_ids.shape, layout.position_ids.device.type
    mask = flex_mask(layout, is_causal)
    return torch_flex.create_block_mask(mask, B, None, T, T, device=device, _compile=device == "cuda")

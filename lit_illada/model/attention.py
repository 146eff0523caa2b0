"""Attention within segments, and the choice of the kernel that computes it.

Shapes: B rows, T tokens per row, H query heads, K key-value heads, G = H / K query heads per key-value head, D head
width, C columns with keys: T, or more where a cache holds the others.
"""

import importlib.metadata
import inspect
import logging
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_illada.batch import Layout
from lit_illada.errors import UserError
from lit_illada.model.config import AttentionKernel

log = logging.getLogger(__name__)

# Measured on two CPU cores in bfloat16, forward and backward: explicit scores take a third to a half of SDPA's time at
# 256 tokens, and as much from 1024 tokens on, where their memory also matters.
LONGEST_MATMUL_ROW = 512

# flex_attention multiplies tiles of at least 16 numbers
NARROWEST_FLEX_HEAD = 16

# Kernels that take packed documents as segment boundaries and need no mask. `auto` tries them in this order on CUDA:
# FlashAttention 4 uses instructions of Hopper and Blackwell. flash-attn and varlen are both FlashAttention 2, but an
# installed package was chosen by the user, and it supports grouped heads natively; torch 2.11 repeats keys and values.
SEGMENT_KERNELS = (AttentionKernel.FLASH4, AttentionKernel.FLASH, AttentionKernel.VARLEN)

SegmentKernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, bool], Tensor]
"""(q (B·T, H, D), k, v (B·T, K, D), cu_seqlens (S + 1,), max_seqlen, is_causal) -> (B·T, H, D), within segments."""


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
            return cls(kernel, is_causal, None, layout.cu_seqlens, layout.max_seqlen, _segment_kernel(kernel))
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
                return _matmul(q_BTHD, k_BCKD, v_BCKD, self.mask)
            case AttentionKernel.SDPA:
                return _sdpa(q_BTHD, k_BCKD, v_BCKD, self.mask, self.is_causal)
            case AttentionKernel.FLEX:
                return _flex(q_BTHD, k_BCKD, v_BCKD, self.flex_tiles)
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


@cache
def choose_kernel(
    wanted: AttentionKernel, device: str, dtype: torch.dtype, is_short: bool, head_dim: int | None = None
) -> AttentionKernel:
    """The kernel to run, logged once per combination of arguments. head_dim: None if not known.

    Raises UserError if the wanted kernel cannot run.
    """
    kernel: AttentionKernel
    if wanted is not AttentionKernel.AUTO:
        if problem := _why_not(wanted, device, dtype, head_dim):
            raise UserError(f"model.attention is {wanted}, which {problem}: choose sdpa, or auto for the fastest here")
        kernel, reason = wanted, "as configured"
    elif device == "cpu":
        kernel = AttentionKernel.MATMUL if is_short and dtype is torch.bfloat16 else AttentionKernel.SDPA
        reason = "auto, the fastest on a CPU for this dtype and row length"
    else:
        obstacles = {fast: _why_not(fast, device, dtype, head_dim) for fast in SEGMENT_KERNELS}
        kernel = next((fast for fast, problem in obstacles.items() if not problem), AttentionKernel.SDPA)
        reason = "; ".join(["auto", *(f"{fast} {problem}" for fast, problem in obstacles.items() if problem)])
    rows = "up to" if is_short else "over"
    log.info("attention runs on %s (%s, %s, rows %s %d): %s", kernel, device, dtype, rows, LONGEST_MATMUL_ROW, reason)
    return kernel


@cache
def choose_masked_kernel(
    wanted: AttentionKernel, device: str, dtype: torch.dtype, is_short: bool, fits_flex: bool
) -> AttentionKernel:
    """The kernel of attention with a mask within segments, logged once per combination of arguments.

    fits_flex: whether flex_attention can run and skip tiles: for rows with a clean copy and heads of 16 or more. Other
    rows in blocks vary in length, for which it would compile anew, and an annealed mask leaves no tile empty.
    Raises UserError for a segment kernel, which has no such mask, and for one that cannot run.
    """
    if wanted in SEGMENT_KERNELS:
        raise UserError(
            f"model.attention is {wanted}, which has no mask for objective.block_length or attention_annealing: choose "
            "auto, flex, sdpa or matmul"
        )
    is_default = wanted is AttentionKernel.AUTO and device == "cuda"
    kernel = AttentionKernel.FLEX if is_default else choose_kernel(wanted, device, dtype, is_short)
    if kernel is AttentionKernel.FLEX and not fits_flex:
        kernel = AttentionKernel.SDPA
    log.info("attention with a mask within segments runs on %s (%s, %s)", kernel, device, dtype)
    return kernel


def takes_heads(kernel: AttentionKernel, head_dim: int) -> bool:
    """Whether one of SEGMENT_KERNELS supports heads of this width."""
    return head_dim in _HEAD_DIMS[kernel][0]


def _why_not(kernel: AttentionKernel, device: str, dtype: torch.dtype, head_dim: int | None = None) -> str | None:
    """The reason why the kernel cannot run here, or None."""
    if kernel is AttentionKernel.FLEX and device != "cuda":
        return f"needs a CUDA device, but the model is on {device!r}"
    if kernel not in SEGMENT_KERNELS:
        return None
    if kernel in _PACKAGES:
        package, extra, rival = _PACKAGES[kernel]
        if not _is_installed(package):
            return f"needs the {package} package (pip install 'lit-illada[{extra}]')"
        if _is_installed(rival):
            return f"conflicts with {rival}, which installs into the same folder (pip uninstall {rival})"
    if device != "cuda":
        return f"needs a CUDA device, but the model is on {device!r}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"computes in bfloat16 or float16, but the model in {dtype}"
    if head_dim is not None and not takes_heads(kernel, head_dim):
        return f"supports a head size of {_HEAD_DIMS[kernel][1]}, but the model has {head_dim}"
    if torch.cuda.is_available():
        has = torch.cuda.get_device_capability()
        if has < _CAPABILITY[kernel]:
            needed, seen = (".".join(map(str, version)) for version in (_CAPABILITY[kernel], has))
            return f"needs a GPU of compute capability {needed}, but this one has {seen}"
    return None


# package, extra that installs it, conflicting package: both install into a folder `flash_attn`
_PACKAGES = {
    AttentionKernel.FLASH: ("flash-attn", "flash-attn", "flash-attn-4"),
    AttentionKernel.FLASH4: ("flash-attn-4", "flash-attn-4", "flash-attn"),
}
# Ampere, and Hopper: FlashAttention 4 has no backward pass for Ampere
_CAPABILITY = {AttentionKernel.VARLEN: (8, 0), AttentionKernel.FLASH: (8, 0), AttentionKernel.FLASH4: (9, 0)}
# flash-attn 2 pads heads to a multiple of 8, torch does not
_HEAD_DIMS: dict[AttentionKernel, tuple[Container[int], str]] = {
    AttentionKernel.VARLEN: (range(8, 257, 8), "a multiple of 8, at most 256"),
    AttentionKernel.FLASH: (range(1, 257), "at most 256"),
    AttentionKernel.FLASH4: ((64, 96, 128), "64, 96 or 128"),
}


def _is_installed(package: str) -> bool:
    """Looks up the distribution, since both packages install a folder `flash_attn`."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _matmul(q_BTHD: Tensor, k_BCKD: Tensor, v_BCKD: Tensor, mask: Tensor | None) -> Tensor:
    B, T, H, D = q_BTHD.shape
    C, K = k_BCKD.shape[1:3]
    # The G query heads of a key-value head form one tall matrix: two large products instead of 2·G small ones.
    q = (q_BTHD * D**-0.5).view(B, T, K, H // K, D).permute(0, 2, 3, 1, 4).reshape(B, K, -1, D)
    scores = q @ k_BCKD.permute(0, 2, 3, 1)
    if mask is not None:
        scores = (scores.view(B, K, -1, T, C) + mask[:, :, None]).view_as(scores)
    out = scores.softmax(-1) @ v_BCKD.transpose(1, 2)  # softmax of bfloat16 computes in float32 internally
    return out.view(B, K, -1, T, D).permute(0, 3, 1, 2, 4).reshape(B, T, H, D)


def _sdpa(q_BTHD: Tensor, k_BCKD: Tensor, v_BCKD: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BCKD, v_BCKD))
    is_grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal and mask is None, enable_gqa=is_grouped)
    return out.transpose(1, 2)


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
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    (B, T), device = layout.position_ids.shape, layout.position_ids.device.type
    return flex.create_block_mask(flex_mask(layout, is_causal), B, None, T, T, device=device, _compile=device == "cuda")


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    # imported here because it imports torch's compiler, which takes a second that other kernels do not need
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    return torch.compile(flex.flex_attention)


def _flex(q_BTHD: Tensor, k_BCKD: Tensor, v_BCKD: Tensor, tiles: Any) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BCKD, v_BCKD))
    return _compiled_flex()(q, k, v, block_mask=tiles, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


@cache
def _segment_kernel(kernel: AttentionKernel) -> SegmentKernel:
    match kernel:
        case AttentionKernel.FLASH4:
            return _flash_4()
        case AttentionKernel.FLASH:
            return _flash()
    return _varlen()


def _varlen() -> SegmentKernel:
    # imported here because it imports torch's compiler, which takes a second that other kernels do not need
    varlen_attn = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    # torch 2.11 has no `enable_gqa`; later versions need it for fewer key-value heads
    has_gqa = "enable_gqa" in inspect.signature(varlen_attn).parameters

    def attend(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, is_causal: bool) -> Tensor:
        boundaries = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
        window = (-1, 0) if is_causal else (-1, -1)
        if has_gqa:
            return varlen_attn(q, k, v, *boundaries, window_size=window, enable_gqa=q.shape[1] != k.shape[1])
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        return varlen_attn(q, k, v, *boundaries, window_size=window)

    return attend


def _flash() -> SegmentKernel:
    from flash_attn import flash_attn_varlen_func

    def attend(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, is_causal: bool) -> Tensor:
        return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, causal=is_causal)

    return attend


def _flash_4() -> SegmentKernel:
    from flash_attn.cute import flash_attn_varlen_func

    def attend(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, is_causal: bool) -> Tensor:
        # by keyword: beta releases differ in the arguments between `v` and the boundaries
        boundaries = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens}
        longest = {"max_seqlen_q": max_seqlen, "max_seqlen_k": max_seqlen}
        out = flash_attn_varlen_func(q, k, v, **boundaries, **longest, causal=is_causal)
        return out[0] if isinstance(out, tuple) else out  # some beta releases also return the log-sum-exp

    return attend

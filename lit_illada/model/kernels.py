"""The kernels of attention, each in the layout of its library.

Shapes: B rows, T tokens per row, H query heads, K key-value heads, D head width, C columns with keys.
"""

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_illada.model.config import AttentionKernel
from lit_illada.model.kernel_choice import sdpa_takes_groups

SegmentKernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, bool], Tensor]
"""(q (B·T, H, D), k, v (B·T, K, D), cu_seqlens (S + 1,), max_seqlen, is_causal) -> (B·T, H, D), within segments."""


def matmul(q_BTHD: Tensor, k_BCKD: Tensor, v_BCKD: Tensor, mask: Tensor | None) -> Tensor:
    """Explicit scores. mask: additive, (B, 1, T, C)."""
    B, T, H, D = q_BTHD.shape
    C, K = k_BCKD.shape[1:3]
    # The G query heads of a key-value head form one tall matrix: two large products instead of 2·G small ones.
    q = (q_BTHD * D**-0.5).view(B, T, K, H // K, D).permute(0, 2, 3, 1, 4).reshape(B, K, -1, D)
    scores = q @ k_BCKD.permute(0, 2, 3, 1)
    if mask is not None:
        scores = (scores.view(B, K, -1, T, C) + mask[:, :, None]).view_as(scores)
    out = scores.softmax(-1) @ v_BCKD.transpose(1, 2)  # softmax of bfloat16 computes in float32 internally
    return out.view(B, K, -1, T, D).permute(0, 3, 1, 2, 4).reshape(B, T, H, D)


def sdpa(q_BTHD: Tensor, k_BCKD: Tensor, v_BCKD: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """torch's scaled_dot_product_attention. mask: bool, (B, 1, T, C)."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BCKD, v_BCKD))
    is_grouped = q.shape[1] != k.shape[1]
    if is_grouped and not sdpa_takes_groups(q.device.type, q.itemsize == 2, mask is not None):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        is_grouped = False
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal and mask is None, enable_gqa=is_grouped)
    return out.transpose(1, 2)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    # imported here because it imports torch's compiler, which takes a second that other kernels do not need
    return torch.compile(importlib.import_module("torch.nn.attention.flex_attention").flex_attention)


def flex(q_BTHD: Tensor, k_BCKD: Tensor, v_BCKD: Tensor, tiles: Any) -> Tensor:
    """flex_attention. tiles: its BlockMask."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BCKD, v_BCKD))
    return _compiled_flex()(q, k, v, block_mask=tiles, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


@cache
def segment_kernel(kernel: AttentionKernel) -> SegmentKernel:
    """The function of one of SEGMENT_KERNELS. Imports its package."""
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

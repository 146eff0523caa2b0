"""The choice of the attention kernel: the wanted one, or the fastest that can run here."""

import importlib.metadata
import logging
from collections.abc import Container
from functools import cache

import torch

from lit_illada.errors import UserError
from lit_illada.model.config import AttentionKernel

log = logging.getLogger(__name__)

# Measured on two CPU cores in bfloat16, forward and backward: explicit scores take a third to a half of SDPA's time at
# 256 tokens, and as much from 1024 tokens on, where their memory also matters.
LONGEST_MATMUL_ROW = 512

# Kernels that take packed documents as segment boundaries and need no mask. `auto` tries them in this order on CUDA:
# FlashAttention 4 uses instructions of Hopper and Blackwell. flash-attn and varlen are both FlashAttention 2, but an
# installed package was chosen by the user, and it supports grouped heads natively; torch 2.11 repeats keys and values.
SEGMENT_KERNELS = (AttentionKernel.FLASH4, AttentionKernel.FLASH, AttentionKernel.VARLEN)


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


def sdpa_takes_groups(device: str, is_half: bool, has_mask: bool) -> bool:
    """Whether SDPA has a kernel for fewer key-value heads than query heads that does not store all scores.

    On CUDA FlashAttention is one, in bfloat16 and float16 and without a mask. The memory-efficient kernel, which takes
    masks and float32, supports it in no release up to 2.13; cuDNN's does, but comes first on Hopper and Blackwell only.
    """
    return device != "cuda" or (is_half and not has_mask)


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

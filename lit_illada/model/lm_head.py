"""LM head: cross-entropy and accuracy of selected tokens; many logits are computed in slices and never stored at once.

Shapes: M selected tokens, D hidden width, V vocabulary, R tokens or C vocabulary entries of one slice.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_illada.batch import TokenScores
from lit_illada.model.fused_loss import fused_kernel

# Bytes of the float32 logits of one slice: a CPU is fastest near its cache size (measured), a GPU with large products.
CPU_CHUNK_BYTES = 2**23
GPU_CHUNK_BYTES = 2**28
# Bytes of logits, in the dtype of the products, up to which they are stored for the backward pass, not recomputed, and
# bytes of one float32 slice of them: on a CPU a part of a core's cache (measured).
CPU_STORED_BYTES, CPU_ROWS_BYTES = 2**26, 2**20
GPU_STORED_BYTES, GPU_ROWS_BYTES = 2**28, 2**28


def token_scores(hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, chunk_size: int | None = None) -> TokenScores:
    """Scores of the targets (M,) under softmax(hidden · weightᵀ).

    Matrix products run in the autocast dtype if enabled, everything else in float32. Up to CPU_STORED_BYTES or
    GPU_STORED_BYTES of logits are stored for the backward pass. More are computed in slices of `chunk_size` vocabulary
    entries (None: chosen by device) and recomputed in the backward pass, so that apart from the gradients memory does
    not grow with M · V; a given `chunk_size` of less than V always does that. On CUDA, with chunk_size None, Liger's
    kernel is used if it is installed and correct.
    """
    device = hidden_MD.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_MD, weight_VD = hidden_MD.to(dtype), weight_VD.to(dtype)
    if chunk_size is None and (kernel := fused_kernel(hidden_MD, weight_VD)):
        nll_M, best_M = kernel(hidden_MD, weight_VD, targets_M)
        return TokenScores(nll_M, best_M == targets_M)
    (M, D), V = hidden_MD.shape, len(weight_VD)
    if chunk_size is None:
        chunk_size = V if stores_logits(M, V, hidden_MD.itemsize, device) else default_chunk_size(M, D, device, V)
    if chunk_size < V:
        nll_M, best_M = _ChunkedCrossEntropy.apply(hidden_MD, weight_VD, targets_M, chunk_size)
        return TokenScores(nll_M, best_M == targets_M)
    return TokenScores(*_StoredCrossEntropy.apply(hidden_MD, weight_VD, targets_M))


def stores_logits(num_tokens: int, vocab_size: int, itemsize: int, device: str) -> bool:
    """Whether all logits, `itemsize` bytes each, are stored from the forward to the backward pass."""
    return num_tokens * vocab_size * itemsize <= (CPU_STORED_BYTES if device == "cpu" else GPU_STORED_BYTES)


def default_chunk_size(num_tokens: int, hidden_size: int, device: str, vocab_size: int) -> int:
    """Vocabulary entries per slice, in slices of equal size of at least the hidden width: every slice adds to the whole
    gradient of the hidden states, and that sum must not cost more than the logits."""
    chunk_bytes = CPU_CHUNK_BYTES if device == "cpu" else GPU_CHUNK_BYTES
    most = max(hidden_size, chunk_bytes // (4 * max(num_tokens, 1)))
    return math.ceil(vocab_size / math.ceil(vocab_size / most))


class _StoredCrossEntropy(torch.autograd.Function):
    """Cross-entropy from logits stored in the dtype of the products, converted to float32 in slices of the tokens."""

    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        logits_MV = hidden_MD @ weight_VD.T
        nll_M = targets_M.new_empty(len(targets_M), dtype=_score_dtype(hidden_MD))
        is_best_M = torch.empty_like(targets_M, dtype=torch.bool)
        for rows in _row_slices(logits_MV):
            logits_RV, targets_R = logits_MV[rows], targets_M[rows]
            is_best_M[rows] = _is_best(logits_RV, targets_R)
            # on a CPU faster than maximum, exponential and sum by themselves
            log_softmax_RV = torch.log_softmax(logits_RV, -1, dtype=nll_M.dtype)
            nll_M[rows] = -log_softmax_RV.gather(1, targets_R[:, None])[:, 0]
        ctx.save_for_backward(hidden_MD, weight_VD, targets_M, logits_MV)
        ctx.mark_non_differentiable(is_best_M)
        return nll_M, is_best_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nll_M: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden_MD, weight_VD, targets_M, logits_MV = ctx.saved_tensors
        grad_MV = torch.empty_like(logits_MV)
        for rows in _row_slices(logits_MV):
            # d nll / d logit = softmax − 1[target]
            grad_RV = torch.softmax(logits_MV[rows], -1, dtype=grad_nll_M.dtype)
            grad_RV.scatter_add_(1, targets_M[rows, None], grad_RV.new_full((len(grad_RV), 1), -1))
            grad_MV[rows] = grad_RV.mul_(grad_nll_M[rows, None])
        return grad_MV @ weight_VD, grad_MV.T @ hidden_MD if ctx.needs_input_grad[1] else None, None


def _is_best(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    """Whether each target is the first of the entries with the highest logit, shape (R,)."""
    if logits_RV.device.type == "cpu":
        return _is_best_on_cpu(logits_RV, targets_R)
    return logits_RV.argmax(-1) == targets_R


def _is_best_on_cpu(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    # argmax takes fifteen times as long as amax, so only rows whose target has the highest logit are searched for ties
    is_best_R = logits_RV.gather(1, targets_R[:, None])[:, 0] == logits_RV.amax(-1)
    candidates = is_best_R.nonzero()[:, 0]
    is_best_R[candidates] = logits_RV[candidates].argmax(-1) == targets_R[candidates]
    return is_best_R


def _row_slices(logits_MV: Tensor) -> Iterator[slice]:
    """Yields slices of the tokens whose logits in float32 have a limited size."""
    M, V = logits_MV.shape
    num_rows = max(1, (GPU_ROWS_BYTES if logits_MV.is_cuda else CPU_ROWS_BYTES) // (4 * V))
    yield from (slice(start, min(start + num_rows, M)) for start in range(0, M, num_rows))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy over slices of the vocabulary, as in Cut Cross-Entropy (arXiv 2411.09009).

    With slices of the vocabulary instead of the tokens, each row of the weight gradient is one product, written once;
    no float32 accumulator of the size of the weight is needed.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        dtype = _score_dtype(hidden_MD)
        target_logit_M = hidden_MD.new_zeros(len(hidden_MD), dtype=dtype)
        lse_M = hidden_MD.new_full((len(hidden_MD),), float("-inf"), dtype=dtype)
        highest_M, best_M = lse_M, torch.zeros_like(targets_M)
        for entries, logits_MC in _logit_slices(hidden_MD, weight_VD, chunk_size):
            here_M, is_here_M = _within(targets_M, entries)
            target_logit_M = torch.where(is_here_M, logits_MC.gather(1, here_M[:, None])[:, 0], target_logit_M)
            slice_highest_M, slice_best_M = logits_MC.max(-1)
            best_M = torch.where(slice_highest_M > highest_M, slice_best_M + entries.start, best_M)
            highest_M = torch.maximum(highest_M, slice_highest_M)
            slice_lse_M = logits_MC.sub_(slice_highest_M[:, None]).exp_().sum(-1).log() + slice_highest_M
            lse_M = torch.logaddexp(lse_M, slice_lse_M)
        ctx.save_for_backward(hidden_MD, weight_VD, targets_M, lse_M)
        ctx.chunk_size = chunk_size
        ctx.mark_non_differentiable(best_M)
        return lse_M - target_logit_M, best_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nll_M: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        hidden_MD, weight_VD, targets_M, lse_M = ctx.saved_tensors
        grad_hidden_MD = torch.zeros_like(hidden_MD, dtype=lse_M.dtype)
        grad_weight_VD = torch.empty_like(weight_VD) if ctx.needs_input_grad[1] else None
        for entries, logits_MC in _logit_slices(hidden_MD, weight_VD, ctx.chunk_size):
            grad_MC = logits_MC.sub_(lse_M[:, None]).exp_()  # d nll / d logit = softmax − 1[target]
            here_M, is_here_M = _within(targets_M, entries)
            grad_MC.scatter_add_(1, here_M[:, None], -is_here_M[:, None].to(grad_MC.dtype))
            grad_MC = grad_MC.mul_(grad_nll_M[:, None]).to(hidden_MD.dtype)
            grad_hidden_MD += grad_MC @ weight_VD[entries]
            if grad_weight_VD is not None:
                torch.mm(grad_MC.T, hidden_MD, out=grad_weight_VD[entries])
        return grad_hidden_MD.to(hidden_MD.dtype), grad_weight_VD, None, None


def _logit_slices(hidden_MD: Tensor, weight_VD: Tensor, chunk_size: int) -> Iterator[tuple[slice, Tensor]]:
    """Yields the logits of each slice of the vocabulary in one buffer that the next slice overwrites."""
    buffer = hidden_MD.new_empty(len(hidden_MD) * chunk_size, dtype=_score_dtype(hidden_MD))
    for start in range(0, len(weight_VD), chunk_size):
        entries = slice(start, min(start + chunk_size, len(weight_VD)))
        products_MC = hidden_MD @ weight_VD[entries].T
        yield entries, buffer[: products_MC.numel()].view_as(products_MC).copy_(products_MC)


def _within(targets_M: Tensor, entries: slice) -> tuple[Tensor, Tensor]:
    """Targets relative to the slice, clamped to it, and whether they lie inside."""
    is_here_M = (targets_M >= entries.start) & (targets_M < entries.stop)
    return (targets_M - entries.start).clamp(0, entries.stop - entries.start - 1), is_here_M


def _score_dtype(hidden: Tensor) -> torch.dtype:
    """float32, or float64 for gradient checks."""
    return torch.promote_types(hidden.dtype, torch.float32)

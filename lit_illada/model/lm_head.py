"""LM head: cross-entropy and accuracy of selected tokens without materialising all logits.

Shapes: M selected tokens, D hidden width, V vocabulary, C vocabulary entries of one slice.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_illada.batch import TokenScores
from lit_illada.model.fused_loss import fused_kernel

# Bytes of the float32 logits of one slice: a CPU is fastest near its cache size (measured), a GPU with large products.
CPU_CHUNK_BYTES = 2**23
GPU_CHUNK_BYTES = 2**28


def token_scores(hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, chunk_size: int | None = None) -> TokenScores:
    """Scores of the targets (M,) under softmax(hidden · weightᵀ).

    Matrix products run in the autocast dtype if enabled, everything else in float32. Vocabularies of more than
    `chunk_size` entries (None: chosen by device) are processed in slices, recomputed in the backward pass, so that
    apart from the gradients memory does not grow with M · V. On CUDA, with chunk_size None, Liger's kernel is used if
    it is installed and correct.
    """
    device = hidden_MD.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_MD, weight_VD = hidden_MD.to(dtype), weight_VD.to(dtype)
    if chunk_size is None and (kernel := fused_kernel(hidden_MD, weight_VD)):
        nll_M, best_M = kernel(hidden_MD, weight_VD, targets_M)
        return TokenScores(nll_M, best_M == targets_M)
    if chunk_size is None:
        chunk_size = default_chunk_size(len(hidden_MD), hidden_MD.shape[1], device)
    if len(weight_VD) <= chunk_size:
        logits_MV = F.linear(hidden_MD, weight_VD).to(_score_dtype(hidden_MD))
        nll_M = F.cross_entropy(logits_MV, targets_M, reduction="none")
        return TokenScores(nll_M, logits_MV.detach().argmax(-1) == targets_M)
    nll_M, best_M = _ChunkedCrossEntropy.apply(hidden_MD, weight_VD, targets_M, chunk_size)
    return TokenScores(nll_M, best_M == targets_M)


def default_chunk_size(num_tokens: int, hidden_size: int, device: str) -> int:
    """Vocabulary entries per slice, at least the hidden width: every slice adds to the whole gradient of the hidden
    states, and that sum must not cost more than the logits."""
    chunk_bytes = CPU_CHUNK_BYTES if device == "cpu" else GPU_CHUNK_BYTES
    return max(hidden_size, chunk_bytes // (4 * max(num_tokens, 1)))


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

"""Muon with equal shapes orthogonalised together, for whole and sharded matrices.

Shapes: G matrices of one shape, M rows, N columns, M ≤ N within the iteration.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim._muon import _adjust_lr

# Bytes of one stack of matrices. A CPU is fastest while a stack and its products fit in its cache (measured: matrices
# of 128 × 256 together, of 256 × 256 one at a time); a GPU with few large products.
CPU_STACK_BYTES = 2**18
GPU_STACK_BYTES = 2**28


class Muon(torch.optim.Muon):
    """torch's Muon, whose states and groups it has, with one Newton-Schulz iteration for several matrices.

    The iteration needs whole matrices: the update of a sharded one (DTensor) is gathered and orthogonalised redundantly
    on every rank, a stack at a time. Weights and momentum stay sharded.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        assert closure is None, "JointOptimizer evaluates the closure"
        for group in self.param_groups:
            for stack in _stacks([p for p in group["params"] if p.grad is not None]):
                self._update(stack, group)

    def _update(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
        whole = torch.stack([_whole(self._nesterov(p, group["momentum"])) for p in parameters])
        # For gradients of pico, whose singular values differ by a factor of 1000 or more, the result in float32 is
        # within 0.1 % of that in float64, in bfloat16 within 3 to 24 %. On a CPU the accuracy costs at most a few
        # percent of a step: processors without instructions for bfloat16 multiply float32 no slower, and on one with
        # AVX512-BF16 Muon takes 19 % of nano's step and torch's, in bfloat16, 14 % (`bench step`).
        dtype = torch.float32 if whole.device.type == "cpu" else torch.bfloat16
        changes = orthogonalised(whole.to(dtype), group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = _adjust_lr(float(group["lr"]), group["adjust_lr_fn"], parameters[0].shape)
        for parameter, change in zip(parameters, changes, strict=True):
            parameter.mul_(1 - float(group["lr"]) * group["weight_decay"])
            parameter.add_(_placed_like(parameter, change), alpha=-rate)

    def _nesterov(self, parameter: Tensor, momentum: float) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        return gradient.lerp(state["momentum_buffer"].lerp_(gradient, 1 - momentum), momentum)


def orthogonalised(
    matrices_GMN: Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float
) -> Tensor:
    """Newton-Schulz iteration X ← aX + b(XXᵀ)X + c(XXᵀ)²X of each matrix divided by its Frobenius norm.

    Computes in the dtype of the matrices. In bfloat16 the result is that of torch's Muon.
    """
    is_tall = matrices_GMN.shape[1] > matrices_GMN.shape[2]
    x = matrices_GMN.mT if is_tall else matrices_GMN
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=eps)
    # in products of M × M × M, S steps cost S · (2N/M + 1), or 2N/M + 4S − 3 in the form of the Gram matrix
    is_wide = 2 * x.shape[2] > 3 * x.shape[1]
    iterate = _iterate_gram if is_wide and x.dtype is not torch.bfloat16 else _iterate
    x = iterate(x, coefficients, num_steps)
    return x.mT if is_tall else x


def _iterate(x_GMN: Tensor, coefficients: tuple[float, float, float], num_steps: int) -> Tensor:
    a, b, c = coefficients
    for _ in range(num_steps):
        gram_GMM = x_GMN @ x_GMN.mT
        factor_GMM = torch.baddbmm(gram_GMM, gram_GMM, gram_GMM, beta=b, alpha=c)
        x_GMN = torch.baddbmm(x_GMN, factor_GMM, x_GMN, beta=a)
    return x_GMN


def _iterate_gram(x_GMN: Tensor, coefficients: tuple[float, float, float], num_steps: int) -> Tensor:
    """The same iteration on XXᵀ: only its first and last product has N columns.

    With P = aI + bG + cG² of G = XXᵀ, a step maps X to PX and G to PGP; the result is the product of all P times X.
    In bfloat16 the errors of G would grow from step to step.
    """
    a, b, c = coefficients
    gram_GMM = x_GMN @ x_GMN.mT
    product_GMM = None
    for step in range(num_steps):
        factor_GMM = torch.baddbmm(gram_GMM, gram_GMM, gram_GMM, beta=b, alpha=c)
        factor_GMM.diagonal(dim1=1, dim2=2).add_(a)
        product_GMM = factor_GMM if product_GMM is None else factor_GMM @ product_GMM
        if step < num_steps - 1:
            gram_GMM = factor_GMM @ gram_GMM @ factor_GMM
    assert product_GMM is not None
    return product_GMM @ x_GMN


def _stacks(parameters: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Groups parameters of one shape and device, in order, into stacks of limited size."""
    by_shape: dict[tuple[torch.Size, torch.device], list[Tensor]] = {}
    for parameter in parameters:
        by_shape.setdefault((parameter.shape, parameter.device), []).append(parameter)
    for (shape, device), equal in by_shape.items():
        limit = CPU_STACK_BYTES if device.type == "cpu" else GPU_STACK_BYTES
        size = max(1, limit // (4 * shape.numel()))
        for start in range(0, len(equal), size):
            yield equal[start : start + size]


def _whole(update: Tensor) -> Tensor:
    return update.full_tensor() if isinstance(update, DTensor) else update


def _placed_like(parameter: Tensor, change: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return change
    # every rank has computed the same values, so no broadcast is needed
    return distribute_tensor(change, parameter.device_mesh, parameter.placements, src_data_rank=None)

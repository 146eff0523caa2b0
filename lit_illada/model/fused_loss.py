"""Liger's fused LM head and cross-entropy, used only after a check of its gradients.

The losses here weight every token differently, for which older releases silently computed a wrong weight gradient. The
kernel is therefore tested once per device and dtype against float64 before it is used.

Shapes: M selected tokens, D hidden width, V vocabulary.
"""

import importlib
import importlib.util
import logging
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

FusedKernel = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(hidden (M, D), weight (V, D), targets (M,)) -> nll (M,) float32, best (M,)."""


def fused_kernel(hidden_MD: Tensor, weight_VD: Tensor) -> FusedKernel | None:
    """The kernel for plain CUDA tensors of one dtype, if it is installed and correct; else None.

    FSDP gathers the weight before the forward pass, and tensor parallelism does not shard the LM head, so the weight is
    complete on every rank.
    """
    if not hidden_MD.is_cuda or type(weight_VD) not in (Tensor, torch.nn.Parameter):
        return None
    if not len(hidden_MD) or hidden_MD.dtype != weight_VD.dtype:
        return None
    return _trusted_kernel(hidden_MD.device, hidden_MD.dtype)


@cache
def _trusted_kernel(device: torch.device, dtype: torch.dtype) -> FusedKernel | None:
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    try:
        kernel = liger()
        problem = kernel_problem(kernel, device, dtype)
    except Exception as error:  # a kernel that does not compile here must not end the run
        problem = f"it failed here with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if problem is not None:
        log.warning("the loss uses chunked cross-entropy instead of Liger's kernel: %s", problem)
        return None
    log.info("the loss uses Liger's fused kernel; its gradients were checked on %s in %s", device, dtype)
    return kernel


def liger() -> FusedKernel:
    """Liger's kernel, with per-token losses and predictions."""
    fused = importlib.import_module("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy

    def scores(hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        # float32 accumulation of the weight gradient, which is a sum over dozens of slices of the tokens
        options = {"reduction": "none", "accum_dtype": torch.float32, "return_predicted_tokens": True}
        out = fused(hidden_MD, weight_VD, targets_M, **options)
        return out.loss.float(), out.predicted_tokens

    return scores


@torch.inference_mode(False)
@torch.enable_grad()
def kernel_problem(kernel: FusedKernel, device: torch.device, dtype: torch.dtype) -> str | None:
    """Compares scores and gradients with torch's in float64 on a small problem with unequal token weights.

    Returns a description of the difference, or None. Also works inside `no_grad` and `inference_mode`, where the first
    call of a validation may be.
    """
    generator = torch.Generator().manual_seed(0)
    M, D, V = 48, 64, 500
    hidden, weight = (torch.randn(n, D, generator=generator).to(device, dtype).requires_grad_() for n in (M, V))
    targets = torch.randint(V, (M,), generator=generator).to(device)
    token_weight = torch.rand(M, generator=generator).to(device) * 10

    exact_hidden, exact_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logits = exact_hidden @ exact_weight.T
    exact = F.cross_entropy(logits, targets, reduction="none")
    (exact * token_weight).sum().backward()
    nll, best = kernel(hidden, weight, targets)
    (nll * token_weight).sum().backward()
    tolerance = 0.02 if dtype.itemsize == 2 else 1e-4
    seen = {
        "loss": (nll, exact),
        "hidden": (hidden.grad, exact_hidden.grad),
        "weight": (weight.grad, exact_weight.grad),
    }
    for name, (got, wanted) in seen.items():
        assert got is not None
        assert wanted is not None
        error = float((got.detach().double() - wanted.detach()).norm() / wanted.detach().norm())
        if not error < tolerance:
            what = "loss" if name == "loss" else f"gradient of the {name}"
            return f"its {what} is {error:.1%} off for tokens of unequal weight"
    agreement = float((best == logits.argmax(-1)).double().mean())
    return None if agreement > 0.9 else f"its most probable token is right for only {agreement:.0%} of a sample"

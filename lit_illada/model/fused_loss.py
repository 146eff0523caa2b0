"""Liger's fused LM head and cross-entropy: is it here, and are its gradients right?

Our losses weigh every token apart, for which older releases computed a wrong gradient of the weight without a word. So
the kernel is asked to prove itself on the device, once, before it is trusted.

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
    """The kernel where it may be used, else None: on CUDA, for plain tensors that are whole, in one dtype.

    Under FSDP the weight is whole while the model runs; tensor parallelism does not cut the LM head, so that every rank
    computes the whole of it.
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
        problem = what_is_wrong(kernel, device, dtype)
    except Exception as error:  # a kernel that does not compile here must not end the run
        problem = f"it failed here with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if problem is not None:
        log.warning("the loss runs on our own chunked cross-entropy, not on Liger's kernel: %s", problem)
        return None
    log.info("the loss runs on Liger's fused kernel, whose gradients were checked on %s in %s", device, dtype)
    return kernel


def liger() -> FusedKernel:
    fused = importlib.import_module("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy

    def scores(hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        # float32 sums of the weight's gradient: it is added up over dozens of slices of the tokens
        options = {"reduction": "none", "accum_dtype": torch.float32, "return_predicted_tokens": True}
        out = fused(hidden_MD, weight_VD, targets_M, **options)
        return out.loss.float(), out.predicted_tokens

    return scores


@torch.inference_mode(False)
@torch.enable_grad()
def what_is_wrong(kernel: FusedKernel, device: torch.device, dtype: torch.dtype) -> str | None:
    """Scores and gradients on a small problem whose tokens weigh differently, against torch's in float64.

    Also where the first scores asked for are a validation's, without gradients.
    """
    generator = torch.Generator().manual_seed(0)
    M, D, V = 48, 64, 500
    hidden, weight = (torch.randn(n, D, generator=generator).to(device, dtype).requires_grad_() for n in (M, V))
    targets = torch.randint(V, (M,), generator=generator).to(device)
    importance = torch.rand(M, generator=generator).to(device) * 10

    exact_hidden, exact_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logits = exact_hidden @ exact_weight.T
    exact = F.cross_entropy(logits, targets, reduction="none")
    (exact * importance).sum().backward()
    nll, best = kernel(hidden, weight, targets)
    (nll * importance).sum().backward()
    largest = 0.02 if dtype.itemsize == 2 else 1e-4
    seen = {
        "loss": (nll, exact),
        "hidden": (hidden.grad, exact_hidden.grad),
        "weight": (weight.grad, exact_weight.grad),
    }
    for name, (got, wanted) in seen.items():
        assert got is not None
        assert wanted is not None
        error = float((got.detach().double() - wanted.detach()).norm() / wanted.detach().norm())
        if not error < largest:
            told = "loss" if name == "loss" else f"gradient of the {name}"
            return f"its {told} is {error:.1%} off for tokens that weigh differently"
    agreement = float((best == logits.argmax(-1)).double().mean())
    return None if agreement > 0.9 else f"it names the likeliest token rightly for {agreement:.0%} of a sample"

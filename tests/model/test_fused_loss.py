"""Verification of Liger's kernel, against correct and faulty stubs; on a GPU with the real kernel."""

import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lit_illada.model.fused_loss import _trusted_kernel, fused_kernel, kernel_problem, liger
from lit_illada.model.lm_head import token_scores

CPU = torch.device("cpu")


def right(hidden, weight, targets):
    logits = (hidden @ weight.T).float()
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1)


class Unweighted(torch.autograd.Function):
    """The weight's gradient is made in the forward pass, before anyone knows how much each token weighs."""

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        with torch.enable_grad():
            leaves = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
            nll, best = right(*leaves, targets)
            ctx.save_for_backward(*torch.autograd.grad(nll.sum(), leaves))
        ctx.mark_non_differentiable(best)
        return nll.detach(), best

    @staticmethod
    def backward(ctx, upstream, _):
        of_hidden, of_weight = ctx.saved_tensors
        return upstream[:, None] * of_hidden, upstream.mean() * of_weight, None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_correct_kernel_passes_the_check_also_during_validation(dtype):
    assert kernel_problem(right, CPU, dtype) is None
    with torch.no_grad():
        assert kernel_problem(right, CPU, dtype) is None


def test_a_gradient_that_ignores_token_weights_is_detected():
    assert "gradient of the weight" in kernel_problem(Unweighted.apply, CPU, torch.float32)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda nll, best: (1.1 * nll, best), "loss"),
        (lambda nll, best: (nll + nll.new_tensor(float("nan")), best), "loss"),
        (lambda nll, best: (nll, best + 1), "most probable token"),
    ],
)
def test_wrong_scores_are_detected(spoil, named):
    assert named in kernel_problem(lambda *inputs: spoil(*right(*inputs)), CPU, torch.float32)


@pytest.mark.parametrize("is_right", [True, False])
def test_the_log_states_whether_an_installed_kernel_is_used(monkeypatch, caplog, is_right):
    def fused(hidden, weight, targets, reduction, accum_dtype, return_predicted_tokens):
        assert reduction == "none"
        assert return_predicted_tokens
        nll, best = (right if is_right else Unweighted.apply)(hidden, weight, targets)
        return SimpleNamespace(loss=nll, predicted_tokens=best)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    module = SimpleNamespace(liger_fused_linear_cross_entropy=fused)
    monkeypatch.setattr("lit_illada.model.fused_loss.importlib.import_module", lambda name: module)
    _trusted_kernel.cache_clear()
    with caplog.at_level("INFO"):
        kernel = _trusted_kernel(CPU, torch.float32)
    _trusted_kernel.cache_clear()
    assert (kernel is not None) is is_right
    assert ("uses Liger's fused kernel" in caplog.text) is is_right
    assert ("instead of Liger's kernel: its gradient of the weight" in caplog.text) is not is_right


def test_a_cpu_and_an_empty_selection_use_the_built_in_loss():
    assert fused_kernel(torch.zeros(3, 4), torch.zeros(5, 4)) is None
    assert token_scores(torch.zeros(0, 4), torch.zeros(5, 4), torch.zeros(0, dtype=torch.int64)).nll.shape == (0,)


@pytest.mark.skipif(not (find_spec("liger_kernel") and find_spec("triton")), reason="needs liger-kernel and triton")
def test_ligers_kernel_is_correct_in_tritons_interpreter():
    program = (
        "from lit_illada.model.fused_loss import *; print(kernel_problem(liger(), torch.device('cpu'), torch.float32))"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ligers_kernel_is_correct_on_a_gpu(dtype):
    if find_spec("liger_kernel") is None:
        pytest.skip("needs liger-kernel")
    assert kernel_problem(liger(), torch.device("cuda"), dtype) is None

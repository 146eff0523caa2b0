"""Muon: the iteration against float64 and torch's, stacks of equal shapes."""

import pytest
import torch
from torch import nn
from torch.optim._muon import _zeropower_via_newtonschulz

from lit_illada.training import muon
from lit_illada.training.muon import Muon, orthogonalised

SETTING = ((3.4445, -4.7750, 2.0315), 5, 1e-7)
SHAPES = [(24, 24), (16, 24), (16, 48), (48, 16), (8, 1)]


def matrices(shape, number=3):
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(0))


def exact(matrix):
    """The iteration in float64, as published."""
    (a, b, c), steps, _ = SETTING
    x = matrix.double() / matrix.double().norm()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def error(got, wanted):
    return float((got.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_in_bfloat16_a_stack_equals_the_iteration_of_torch_bit_for_bit(shape):
    stack = matrices(shape).bfloat16()
    one_by_one = [_zeropower_via_newtonschulz(matrix.clone(), SETTING[0], SETTING[1], SETTING[2]) for matrix in stack]
    assert torch.equal(orthogonalised(stack, *SETTING), torch.stack(one_by_one))


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_the_iteration_is_more_exact_than_in_bfloat16(shape):
    for matrix, ours in zip(matrices(shape), orthogonalised(matrices(shape), *SETTING), strict=True):
        rounded = _zeropower_via_newtonschulz(matrix.clone(), SETTING[0], SETTING[1], SETTING[2])
        assert error(ours, exact(matrix)) < 1e-3 < error(rounded, exact(matrix))


def test_directions_without_gradient_stay_zero_in_float32():
    """A matrix of rank 2 with singular values far apart: errors of the Gram matrix must not become directions."""
    left, right = torch.linalg.qr(matrices((16, 2), 1)[0])[0], torch.linalg.qr(matrices((48, 2), 1)[0])[0]
    matrix = left @ torch.diag(torch.tensor([1.0, 1e-3])) @ right.T
    assert error(orthogonalised(matrix[None], *SETTING)[0], exact(matrix)) < 1e-3


def test_parameters_are_stacked_by_shape_up_to_a_size(monkeypatch):
    monkeypatch.setattr(muon, "CPU_STACK_BYTES", 2 * 4 * 6)
    shapes = [(2, 3), (3, 2), (2, 3), (2, 3), (9, 9)]
    parameters = [torch.empty(shape) for shape in shapes]
    stacks = [
        [next(i for i, p in enumerate(parameters) if p is q) for q in stack] for stack in muon._stacks(parameters)
    ]
    assert stacks == [[0, 2], [3], [1], [4]]


def test_the_update_is_that_of_torch_up_to_rounding():
    ours, theirs = ([nn.Parameter(m.clone()) for s in SHAPES for m in matrices(s, 2)] for _ in range(2))
    options = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = (Muon(ours, **options), torch.optim.Muon(theirs, **options))
    for step in range(3):
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for index, parameter in enumerate(parameters):
                parameter.grad = torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(step * 99 + index)
                )
            optimizer.step()
    for p, q, start in zip(ours, theirs, (m for s in SHAPES for m in matrices(s, 2)), strict=True):
        assert error(p.detach() - start, (q.detach() - start).double()) < 0.02

"""Loss weights: finite, and equal to their definitions in λ from the literature."""

import math

import pytest
import torch
from scipy import stats

from lit_illada.errors import UserError
from lit_illada.objective.weighting import WEIGHTINGS, ClippedElbo, FlowMatching, Gaussian, Sech, Sigmoid

T = torch.linspace(0.002, 0.998, 499, dtype=torch.float64)
LAMBDA = torch.log((1 - T) / T)

# f(lambda), the weight relative to the bound: w = f/t
RELATIVE_TO_ELBO = {
    "elbo": lambda lam: torch.ones_like(lam),
    "flat": lambda lam: torch.sigmoid(-lam),
    "sigmoid": lambda lam: torch.sigmoid(-lam + 0.0),
    "flow_matching": lambda lam: torch.exp(-lam / 2),
    "sech": lambda lam: 1 / torch.cosh(lam / 2),
    "gaussian": lambda lam: torch.from_numpy(stats.norm.pdf(lam.numpy())),
    "clipped_elbo": lambda lam: torch.minimum(torch.ones_like(lam), 10 * torch.sigmoid(-lam)),
    "linear": lambda lam: torch.sigmoid(lam) * torch.sigmoid(-lam),
}


@pytest.mark.parametrize("name", RELATIVE_TO_ELBO)
def test_closed_form_equals_the_definition_in_lambda(name):
    assert torch.allclose(WEIGHTINGS[name]()(T), RELATIVE_TO_ELBO[name](LAMBDA) / T, rtol=1e-9)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_are_finite_and_not_negative_up_to_1(name):
    w = WEIGHTINGS[name]()(torch.tensor([1e-9, 1e-3, 0.5, 1.0], dtype=torch.float64))
    assert w.dtype == torch.float64
    assert bool((w.isfinite() & (w >= 0)).all())


def test_parameters_and_limits_have_the_published_values():
    one = torch.ones((), dtype=torch.float64)
    assert torch.allclose(Sigmoid(k=2.5)(T), torch.sigmoid(-LAMBDA + 2.5) / T)
    assert torch.allclose(Sigmoid(k=40.0)(T), 1 / T)
    assert Sigmoid(k=-80.0)(T).float().min() > 0
    assert torch.allclose(Gaussian(mean=1, std=2)(T), torch.from_numpy(stats.norm(1, 2).pdf(LAMBDA.numpy())) / T)
    assert Sech()(one) == 0
    assert Gaussian()(one) == 0
    assert FlowMatching(max_ratio=0.9)(one).item() == pytest.approx(1 / math.sqrt(0.09))
    assert ClippedElbo(gamma=3.0)(T).max() == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: FlowMatching(max_ratio=1.0),
        lambda: Gaussian(std=0),
        lambda: ClippedElbo(gamma=0.5),
        lambda: Sigmoid(k=-800),
        lambda: Sigmoid(k=81),
    ],
)
def test_invalid_values_are_rejected(make):
    with pytest.raises(UserError, match=r"objective.weighting\..* it must be"):
        make()

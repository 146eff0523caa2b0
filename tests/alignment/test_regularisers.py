"""KL estimates: their values and gradients, in expectation over all outcomes of a small policy."""

import pytest
import torch

from lit_illada.alignment.figures import kl_from_old
from lit_illada.alignment.regularisers import REGULARISERS, KlEstimate, KlRef
from lit_illada.alignment.scores import Scores

REFERENCE = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()


@pytest.fixture
def logits():
    return torch.tensor([0.4, -0.3, 0.9], dtype=torch.float64, requires_grad=True)


def expected(estimate, logits):
    """Σ_y p(y) · penalty(y), with p held fixed: the mean over samples of the policy."""
    score = logits.log_softmax(0)
    return (score.detach().exp() * KlRef(estimate=estimate)(score, REFERENCE)).sum()


def kl(p, q):
    return (p.exp() * (p - q)).sum()


@pytest.mark.parametrize("estimate", [KlEstimate.K1, KlEstimate.K3])
def test_mean_is_the_divergence(estimate, logits):
    assert expected(estimate, logits).item() == pytest.approx(kl(logits.log_softmax(0), REFERENCE).item())


def test_k2_is_close_where_the_policies_are(logits):
    near = (REFERENCE + 0.01 * logits.detach()).log_softmax(0)
    assert expected(KlEstimate.K2, near).item() == pytest.approx(kl(near, REFERENCE).item(), rel=0.02)


@pytest.mark.parametrize("estimate", [KlEstimate.K1, KlEstimate.K2])
def test_gradient_of_k1_and_k2_is_that_of_the_divergence(estimate, logits):
    want = torch.autograd.grad(kl(logits.log_softmax(0), REFERENCE), logits)[0]
    torch.testing.assert_close(torch.autograd.grad(expected(estimate, logits), logits)[0], want)


def test_gradient_of_k3_is_that_of_the_reverse_divergence(logits):
    want = torch.autograd.grad(kl(REFERENCE, logits.log_softmax(0)), logits)[0]
    torch.testing.assert_close(torch.autograd.grad(expected(KlEstimate.K3, logits), logits)[0], want)


@pytest.mark.parametrize("name", REGULARISERS)
def test_penalty_of_equal_policies_is_exactly_zero(name, logits):
    score = logits.log_softmax(0)
    assert torch.equal(REGULARISERS[name]()(score, score.detach()), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("estimate", list(KlEstimate))
def test_penalty_of_sequences_is_finite(estimate):
    score = torch.tensor([-1e3, 1e3], requires_grad=True)
    penalty = KlRef(estimate=estimate)(score, torch.zeros(2))
    penalty.sum().backward()
    assert penalty.isfinite().all()
    assert score.grad.isfinite().all()


def test_kl_from_the_old_policy_is_that_of_its_distribution():
    """Tokens of a distribution p, scored under q: the mean of the estimate over p is KL(p ‖ q) exactly."""
    p, q = (torch.tensor(values, dtype=torch.float64) for values in ([0.5, 0.3, 0.2], [0.2, 0.2, 0.6]))
    old, new = (Scores(values.log().view(1, 1, 3), None) for values in (p, q))
    each = [kl_from_old(new, old, torch.tensor([[token == index for index in range(3)]])) for token in range(3)]
    assert all(count == 1 for _, count in each)
    assert sum(weight * value for weight, (value, _) in zip(p, each, strict=True)) == pytest.approx(
        (p * (p / q).log()).sum().item()
    )
    assert kl_from_old(old, old, torch.ones(1, 3, dtype=torch.bool)).tolist() == [0, 3]

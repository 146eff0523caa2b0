import pytest
import torch

from lit_illada.batch import Layout
from lit_illada.errors import UserError
from lit_illada.objective.token_weight import TOKEN_WEIGHTS, Cart, Focal

LENGTHS = torch.tensor([12, 5, 7, 1, 1, 10])
LAYOUT = Layout.from_lengths(LENGTHS, 12)


def cart_by_double_loop(p, is_masked, lengths):
    flat, weights, start = is_masked.flatten().tolist(), [], 0
    for length in lengths.tolist():
        for n in range(start, start + length):
            neighbours = [i for i in range(start, start + length) if i != n and not flat[i]]
            weights.append(0.5 * sum(p * (1 - p) ** (abs(n - i) - 1) for i in neighbours))
        start += length
    return torch.tensor(weights).view_as(is_masked)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.8])
def test_cart_equals_a_double_loop_within_segments(p):
    for seed in range(3):
        is_masked = torch.rand(3, 12, generator=torch.Generator().manual_seed(seed)) < 0.6
        got = Cart(p=p)(torch.ones(3, 12), is_masked, LAYOUT)
        want = cart_by_double_loop(p, is_masked, LENGTHS)
        assert torch.allclose(got[is_masked], want[is_masked], atol=1e-6)


def test_visible_tokens_of_other_documents_have_no_effect():
    is_masked = torch.ones(3, 12, dtype=torch.bool)
    is_masked[0] = False
    assert Cart()(torch.ones(3, 12), is_masked, LAYOUT)[1:].abs().max() == 0


def test_the_gradient_flows_through_the_focal_weight():
    nll = torch.tensor([[0.0, 0.5, 3.0]], dtype=torch.float64, requires_grad=True)
    layout = Layout.whole_rows(1, 3)
    weigh = lambda x: Focal(alpha=0.5, gamma=2.0)(x, torch.ones(1, 3, dtype=torch.bool), layout)  # noqa: E731
    assert torch.allclose(weigh(nll), 0.5 * (1 - torch.exp(-nll)) ** 2)
    assert torch.autograd.gradcheck(weigh, nll)


@pytest.mark.parametrize("name", TOKEN_WEIGHTS)
def test_weights_are_finite_not_negative_and_shaped(name):
    nll = torch.rand(3, 12).requires_grad_()
    is_masked = torch.rand(3, 12) < 0.5
    weights = TOKEN_WEIGHTS[name]()(nll.where(is_masked, 0.0), is_masked, LAYOUT)
    assert weights.shape == nll.shape
    assert weights.dtype == torch.float32
    assert bool((weights.isfinite() & (weights >= 0)).all())


@pytest.mark.parametrize(
    "make", [lambda: Cart(p=0), lambda: Cart(p=1.0), lambda: Focal(gamma=0.5), lambda: Focal(alpha=0)]
)
def test_invalid_values_are_rejected(make):
    with pytest.raises(UserError, match=r"objective.token_weight"):
        make()

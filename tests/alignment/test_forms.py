"""Forms against plain Python, their gradients at and beyond the clip, and at scores that overflow."""

import math

import pytest
import torch

from lit_illada.alignment.forms import FORMS, Clip, ClipAlways, Dpo, DualClip, LinearBound, Reinforce, WeightedNLL

RATIO_FORMS = {name: cls for name, cls in FORMS.items() if name not in ("reinforce", "weighted_nll", "dpo")}


def evaluate(form, log_ratio, advantage):
    """(loss, gradient by score) of one unit with score `log_ratio` and anchor 0."""
    score = torch.tensor([[[log_ratio]]], dtype=torch.float64, requires_grad=True)
    loss = form(score, torch.zeros_like(score), torch.tensor([[advantage]], dtype=torch.float64))
    return loss.item(), torch.autograd.grad(loss.sum(), score)[0].item()


def reference(form, log_ratio, advantage):
    rho = math.exp(log_ratio)
    if isinstance(form, LinearBound):
        return -advantage * (1 + log_ratio if advantage >= 0 else min(rho, form.most))
    inside = min(max(rho, 1 - form.low), 1 + form.high)
    if isinstance(form, ClipAlways):
        return -inside * advantage
    loss = -min(rho * advantage, inside * advantage)
    return min(loss, -form.most * advantage) if isinstance(form, DualClip) and advantage < 0 else loss


@pytest.mark.parametrize("name", RATIO_FORMS)
@pytest.mark.parametrize("advantage", [1.5, -0.5, 0.0])
def test_loss_equals_plain_python(name, advantage):
    form = RATIO_FORMS[name]()
    for log_ratio in (-2.0, -0.3, -0.1, 0.0, 0.1, 0.3, 1.0, 2.0):
        assert evaluate(form, log_ratio, advantage)[0] == pytest.approx(reference(form, log_ratio, advantage))


@pytest.mark.parametrize("name", RATIO_FORMS)
@pytest.mark.parametrize("advantage", [1.5, -0.5])
def test_gradient_at_ratio_one_is_that_of_reinforce(name, advantage):
    """The first loss of a rollout is −A, whose mean over a group is 0, with a gradient that is not."""
    loss, gradient = evaluate(RATIO_FORMS[name](), 0.0, advantage)
    assert loss == -advantage
    assert (
        gradient == -advantage == evaluate(Reinforce(), 0.0, advantage)[1] == evaluate(WeightedNLL(), 0.0, advantage)[1]
    )


@pytest.mark.parametrize("advantage", [1.5, -0.5])
def test_clip_of_width_zero_has_a_gradient_at_ratio_one_only(advantage):
    form = Clip(low=0.0, high=0.0)
    assert evaluate(form, 0.0, advantage)[1] == -advantage
    away = 0.01 if advantage > 0 else -0.01
    assert evaluate(form, away, advantage)[1] == 0


def test_large_ratio_of_a_bad_completion_passes_the_one_sided_clip_only():
    log_ratio = math.log(5.0)
    assert evaluate(Clip(), log_ratio, -1.0)[1] == pytest.approx(5.0)
    for form in (DualClip(), ClipAlways(), LinearBound()):
        assert evaluate(form, log_ratio, -1.0)[1] == 0


@pytest.mark.parametrize("name", RATIO_FORMS)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_clipped_units_are_those_without_gradient(name, advantage):
    form = RATIO_FORMS[name]()
    for log_ratio in (-2.0, -0.1, 0.0, 0.1, 2.0):
        score = torch.tensor([[[log_ratio]]], dtype=torch.float64)
        advantage_11 = torch.tensor([[advantage]], dtype=torch.float64)
        is_clipped = form.is_clipped(score, torch.zeros_like(score), advantage_11).item()
        assert is_clipped == (evaluate(form, log_ratio, advantage)[1] == 0)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("log_ratio", [-1e4, -31.0, -1.0, 31.0, 1e4])
def test_scores_of_whole_sequences_give_finite_losses_and_gradients(name, log_ratio):
    """exp of a difference of sums overflows in float32 from 89 nats on; log(1 + d) is undefined from d = −1 on."""
    score = torch.tensor([[[log_ratio], [-log_ratio]]], requires_grad=True)
    loss = FORMS[name]()(score, torch.zeros_like(score), torch.tensor([[1.0], [-1.0]]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert score.grad.isfinite().all()


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_linear_bound_over_draws_bounds_the_loss_of_the_mean_score(advantage):
    """A lower bound of the objective: mean over draws of the loss ≥ −A·exp(mean score)."""
    draws = torch.linspace(-1.2, 0.8, 9, dtype=torch.float64)[:, None, None]
    form = LinearBound(most=100.0)
    loss = form(draws, torch.zeros_like(draws), torch.tensor([[advantage]], dtype=torch.float64)).mean()
    assert loss >= -advantage * draws.mean().exp()


def test_self_normalised_weights_are_the_clipped_ratios_without_gradient():
    score = torch.tensor([[[-1.0, 0.0, 1.0]]], requires_grad=True)
    weight = ClipAlways(low=0.2, high=0.3).weight(score, torch.zeros(1, 1, 3))
    torch.testing.assert_close(weight, torch.tensor([[[0.8, 1.0, 1.3]]]))
    assert not weight.requires_grad


def test_dpo_pairs_neighbours_and_puts_the_loss_on_the_chosen_one():
    score = torch.tensor([[[1.0], [0.5], [-2.0], [3.0]]])
    anchor = torch.tensor([[[0.5], [1.0], [-2.0], [1.0]]])
    loss = Dpo(beta=0.5)(score, anchor, torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]))
    margins = torch.tensor([0.5 - (-0.5), 0.0 - 2.0])
    torch.testing.assert_close(loss[0, 0::2, 0], -torch.nn.functional.logsigmoid(0.5 * margins))
    assert torch.equal(loss[0, 1::2, 0], torch.zeros(2))

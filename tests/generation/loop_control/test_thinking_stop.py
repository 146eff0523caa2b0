"""Ramps against their formulas."""

import math

import pytest
import torch

from lit_illada.errors import UserError
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.loop_control.thinking_stop import ExponentialRamp, HardStop, LinearRamp, MixtureRamp

CLOSE, BUDGET = 4, 100
PLACES = torch.tensor([0, 9, 10, 11, 25, 50, 80, 99])


def logits():
    return torch.randn(len(PLACES), 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3


def u(g, g0, most):
    return max(0.0, (g - g0) / (most - g0))


def only_close_changed(before, after):
    others = [v for v in range(7) if v != CLOSE]
    return after[:, others].equal(before[:, others])


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_the_linear_ramp_adds_scale_times_the_power_of_the_progress(power):
    rule = LinearRamp(thinking_tokens=60, start_tokens=10, power=power, scale=8.0)
    before = logits()
    after = rule(before, PLACES, CLOSE, BUDGET)
    expected = [before[i, CLOSE].item() + 8.0 * u(g, 10, 60) ** power for i, g in enumerate(PLACES.tolist())]
    torch.testing.assert_close(after[:, CLOSE], torch.tensor(expected, dtype=torch.float64))
    assert only_close_changed(before, after)


class ExponentialDecayLengthPenalty:
    """Hugging Face transformers' processor of this name, restated."""

    def __init__(self, exponential_decay_length_penalty, eos_token_id, input_ids_seq_length):
        self.regulation_start = exponential_decay_length_penalty[0] + input_ids_seq_length
        self.regulation_factor = exponential_decay_length_penalty[1]
        self.eos_token_id = eos_token_id

    def __call__(self, cur_len, scores):
        if cur_len > self.regulation_start:
            size = abs(scores[self.eos_token_id])
            scores[self.eos_token_id] += size * (self.regulation_factor ** (cur_len - self.regulation_start) - 1)
        return scores


def test_the_exponential_ramp_is_that_of_hugging_face():
    theirs = ExponentialDecayLengthPenalty((10, 1.07), CLOSE, input_ids_seq_length=5)
    expected = [theirs(5 + g, row) for g, row in zip(PLACES.tolist(), logits().tolist(), strict=True)]
    after = ExponentialRamp(start_tokens=10, factor=1.07)(logits(), PLACES, CLOSE, BUDGET)
    torch.testing.assert_close(after, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_mixture_gives_its_weight_to_the_closing_token(power):
    rule = MixtureRamp(thinking_tokens=60, start_tokens=10, power=power, max_fraction=0.8)
    before = logits()
    after = rule(before, PLACES, CLOSE, BUDGET)
    for row, g in enumerate(PLACES.tolist()):
        share = 0.8 * min(1.0, u(g, 10, 60)) ** power
        expected = (1 - share) * before[row].softmax(-1) + share * torch.eye(7, dtype=torch.float64)[CLOSE]
        torch.testing.assert_close(after[row].softmax(-1), expected)
    assert only_close_changed(before, after)


@pytest.mark.parametrize(
    "rule",
    [LinearRamp(start_tokens=10), ExponentialRamp(start_tokens=10), MixtureRamp(start_tokens=10), HardStop(11)],
)
def test_nothing_changes_before_the_start(rule):
    early = PLACES <= 10
    assert rule(logits(), PLACES, CLOSE, BUDGET)[early].equal(logits()[early])
    assert rule.acts_on(PLACES, BUDGET).equal(~early)


@pytest.mark.parametrize("rule", [LinearRamp(start_tokens=10), ExponentialRamp(start_tokens=10)])
def test_a_forbidden_closing_token_stays_forbidden(rule):
    forbidden = logits()
    forbidden[:, CLOSE] = -torch.inf
    assert rule(forbidden, PLACES, CLOSE, BUDGET).equal(forbidden)


def test_a_hard_stop_allows_only_the_closing_token_from_its_budget_on():
    after = HardStop(thinking_tokens=50)(logits(), PLACES, CLOSE, BUDGET)
    is_over = PLACES >= 50
    assert after[~is_over].equal(logits()[~is_over])
    assert after[is_over].softmax(-1)[:, CLOSE].eq(1).all()


def test_ramps_stay_finite_however_far_behind_the_budget():
    far = torch.tensor([10**6])
    for rule in (LinearRamp(), ExponentialRamp(factor=2.0), MixtureRamp(max_fraction=0.999)):
        after = rule(logits()[:1], far, CLOSE, BUDGET)
        assert after.isfinite().all()
        assert after.argmax() == CLOSE


def test_the_default_budget_is_what_the_answer_leaves():
    assert HardStop(answer_tokens=30).cut(BUDGET) == 70
    rule = LinearRamp(answer_tokens=30, start_tokens=20)
    assert math.isclose(rule.progress(torch.tensor([45]), BUDGET).item(), 0.5)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (LinearRamp(answer_tokens=128), "thinking_stop.answer_tokens is 128: it must be below .* which is 128"),
        (HardStop(answer_tokens=0), "answer_tokens is 0: it must be 1 or more"),
        (HardStop(thinking_tokens=97), r"thinking_tokens is 97: it must be 1 … 96, since .* 128 and 32 tokens"),
        (HardStop(thinking_tokens=0), "thinking_tokens is 0"),
        (LinearRamp(start_tokens=96), "start_tokens is 96: it must be 0 … 95"),
        (LinearRamp(power=0.0), "power is 0.0: it must be above 0"),
        (LinearRamp(scale=-1.0), "scale is -1.0: it must be above 0"),
        (MixtureRamp(max_fraction=1.0), "max_fraction is 1.0: it must be above 0 and below 1"),
        (ExponentialRamp(start_tokens=128), "start_tokens is 128: it must be 0 … 127"),
        (ExponentialRamp(factor=1.0), "factor is 1.0: it must be above 1"),
    ],
)
def test_incompatible_settings_are_rejected(rule, message):
    with pytest.raises(UserError, match=message):
        GenerationConfig(thinking_stop=rule)

"""Learning-rate schedules."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.errors import UserError
from lit_illada.training.config.schedule import SCHEDULES, Cosine, DecayShape, Reactive, WarmupStableDecay
from lit_illada.training.schedule import LearningRate

MAX_STEPS = 100


def make(schedule, lr=1.0):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    return optimizer, LearningRate(optimizer, schedule, MAX_STEPS)


def rates(schedule, observe=None):
    optimizer, learning_rate = make(schedule)
    seen = []
    for step in range(MAX_STEPS):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        learning_rate.step()
        if observe and (step + 1) % 5 == 0:
            learning_rate.observe(observe(step + 1))
    return seen


@pytest.mark.parametrize("cls", SCHEDULES.values())
def test_every_schedule_warms_up_linearly_and_never_leaves_zero_to_one(cls):
    seen = rates(cls(warmup_steps=10))
    assert seen[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert all(0 <= rate <= 1 for rate in seen)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(seen[10:]))


def test_cosine_follows_the_formula_from_the_end_of_the_warm_up():
    seen = rates(Cosine(warmup_steps=20, final_factor=0.1))
    for step in range(20, MAX_STEPS):
        expected = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 20) / 80))
        assert seen[step] == pytest.approx(expected)


# fraction of the peak that is left after a fraction x of the decay
LEFT = {DecayShape.linear: lambda x: 1 - x, DecayShape.cosine: lambda x: (1 + math.cos(math.pi * x)) / 2}


@pytest.mark.parametrize("shape", list(DecayShape))
def test_wsd_is_constant_and_then_decays_in_its_shape_over_its_fraction(shape):
    seen = rates(WarmupStableDecay(warmup_steps=10, decay_fraction=0.3, decay_shape=shape, final_factor=0.2))
    assert seen[10:71] == [1.0] * 61
    assert seen[70:] == pytest.approx([0.2 + 0.8 * LEFT[shape](step / 30) for step in range(30)])


def test_reactive_decays_once_the_bound_stops_improving():
    schedule = Reactive(warmup_steps=0, patience=2, min_improvement=0.1, decay_fraction=0.2, final_factor=0.0)
    # validated every 5 steps: better until step 20, then flat; two flat validations end at step 30
    seen = rates(schedule, observe=lambda step: 5.0 - min(step, 20) * 0.1)
    assert seen[:30] == [1.0] * 30
    assert seen[30:50] == pytest.approx([(1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)])
    assert seen[50:] == pytest.approx([0.0] * 50)


def test_reactive_starts_the_decay_in_time_without_a_plateau():
    seen = rates(Reactive(warmup_steps=0, decay_fraction=0.2, final_factor=0.0), observe=lambda step: -float(step))
    assert seen[:81] == [1.0] * 81
    assert seen[90] == pytest.approx(0.5)


def test_reactive_ignores_improvements_below_the_minimum():
    _, learning_rate = make(Reactive(warmup_steps=0, patience=3, min_improvement=0.1))
    assert not learning_rate.observe(5.0)
    assert not learning_rate.observe(4.95)
    assert not learning_rate.observe(4.91)
    assert learning_rate.observe(4.905)


def test_reactive_ignores_a_non_finite_bound(caplog):
    _, learning_rate = make(Reactive(warmup_steps=0, patience=2, min_improvement=0.1))
    assert not learning_rate.observe(5.0)
    for bound in (math.nan, math.inf, -math.inf):
        assert not learning_rate.observe(bound)
    assert caplog.text.count("is ignored") == 3
    assert not learning_rate.observe(5.0)
    assert learning_rate.observe(5.0)


@given(st.integers(1, MAX_STEPS - 1), st.sampled_from(sorted(SCHEDULES)))
def test_a_resumed_schedule_continues_exactly(stop_at, name):
    schedule = SCHEDULES[name](warmup_steps=7)
    bound = lambda step: 5.0 - min(step, 30) * 0.1  # noqa: E731

    def drive(optimizer, learning_rate, first, last):
        for step in range(first, last):
            optimizer.step()
            learning_rate.step()
            learning_rate.observe(bound(step))

    optimizer, whole = make(schedule)
    drive(optimizer, whole, 0, MAX_STEPS)
    optimizer, first = make(schedule)
    drive(optimizer, first, 0, stop_at)
    saved = first.state_dict()
    optimizer, resumed = make(schedule)
    resumed.load_state_dict(saved)
    drive(optimizer, resumed, stop_at, MAX_STEPS)
    assert resumed.state_dict() == whole.state_dict()


def test_a_checkpoint_of_an_earlier_version_restores_the_plateau_detection():
    schedule = Reactive(warmup_steps=0)
    _, learning_rate = make(schedule)
    learning_rate.observe(4.0)
    saved = learning_rate.state_dict()
    saved["best_nll"] = saved.pop("best")
    _, resumed = make(schedule)
    resumed.load_state_dict(saved)
    assert resumed.state_dict() == learning_rate.state_dict()
    assert resumed.best == 4.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_invalid_values_are_rejected(name):
    with pytest.raises(UserError, match=r"optim\.schedule\.warmup_steps is -1: it must be 0 or more"):
        SCHEDULES[name](warmup_steps=-1)
    with pytest.raises(UserError, match=r"optim\.schedule\.final_factor"):
        SCHEDULES[name](final_factor=2.0)
    with pytest.raises(UserError, match=r"optim\.schedule\.final_factor"):
        SCHEDULES[name](final_factor=math.nan)


def test_invalid_values_of_one_schedule_are_rejected():
    for cls in (WarmupStableDecay, Reactive):
        with pytest.raises(UserError, match=r"optim\.schedule\.decay_fraction is 0.*: it must be in \(0, 1\]"):
            cls(decay_fraction=0)
    with pytest.raises(UserError, match=r"optim\.schedule\.patience"):
        Reactive(patience=0)
    with pytest.raises(UserError, match=r"optim\.schedule\.min_improvement"):
        Reactive(min_improvement=math.nan)

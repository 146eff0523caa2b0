"""Expected length of an alignment that a number of forward passes ends."""

from types import SimpleNamespace

from lit_illada.alignment.limit import ForwardLimit
from lit_illada.alignment.module import AlignModule


def test_before_the_first_rollout_the_length_is_that_of_the_estimate():
    assert ForwardLimit(1000.0, step_passes=50.0, updates=4).expected_steps == 20
    assert ForwardLimit(1090.0, step_passes=50.0, updates=4).expected_steps == 20  # 5.45 rollouts


def test_a_run_has_at_least_one_rollout():
    assert ForwardLimit(10.0, step_passes=50.0, updates=4).expected_steps == 4


def test_a_run_resumed_within_a_rollout_has_no_negative_time_left():
    limit = ForwardLimit(1000.0, step_passes=50.0, updates=4)
    module = object.__new__(AlignModule)
    limit.on_train_start(SimpleNamespace(global_step=21), module)
    assert limit.expected_steps == 24

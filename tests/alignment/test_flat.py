"""Rollouts whose rewards give no gradient: when a run warns of them, and when it ends."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.alignment.flat import FlatRollouts
from lit_illada.errors import UserError

FLAT, MIXED = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])


def observe(flat, is_mixed, step=0, correct=None, is_logged=True):
    flat.observe(MIXED if is_mixed else FLAT, correct, step, is_logged)


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 40))
def test_only_ten_flat_rollouts_at_the_start_end_a_run_also_after_a_resume(rollouts, resumed_at):
    flat = FlatRollouts()
    for step, is_mixed in enumerate(rollouts):
        if step == resumed_at:
            state, flat = flat.state_dict(), FlatRollouts()
            flat.load_state_dict(state)
        if step == 9 and not any(rollouts[:10]):
            with pytest.raises(UserError, match=r"10 rollouts in a row were without effect. Step 9: all 4 completions"):
                observe(flat, is_mixed, step)
            return
        observe(flat, is_mixed, step)


def test_a_flat_start_is_reported_at_once_and_once(caplog):
    flat = FlatRollouts()
    for step in range(5):
        observe(flat, False, step)
    (message,) = caplog.messages
    assert message.startswith("step 0: all 4 completions have equal reward within every group, so the rewards give no")
    flat.observe(FLAT, None, 5, is_logged=False)
    assert len(caplog.messages) == 1


def test_a_run_that_has_learnt_is_warned_once_after_ten_flat_rollouts(caplog):
    flat = FlatRollouts()
    for step in range(50):
        observe(flat, step in (0, 5), step)
    (message,) = caplog.messages
    assert message.startswith("10 rollouts in a row were without effect. Step 15: all 4 completions have equal reward")


def test_a_first_rollout_without_a_right_answer_is_reported_whatever_other_rewards_say(caplog):
    observe(FlatRollouts(), True, correct=torch.zeros(2, 2))
    (message,) = caplog.messages
    assert message.startswith("step 0: all 4 completions have reward_correct 0, so only the other rewards give a grad")
    assert "problems.difficulties" in message


@pytest.mark.parametrize(
    "correct", [None, MIXED, torch.full((2, 2), float("nan")), torch.tensor([[0.0, 0.0], [float("nan"), 0.0]])]
)
def test_a_first_rollout_with_both_verdicts_or_failed_checks_is_not(correct, caplog):
    flat = FlatRollouts()
    observe(flat, True, correct=correct)
    observe(flat, True, step=1, correct=torch.ones(2, 2))  # later on it is what the run has learnt
    assert not caplog.messages

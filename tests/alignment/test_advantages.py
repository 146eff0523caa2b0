"""Advantages against their formulas; groups of equal rewards get exactly 0."""

import pytest
import torch

from lit_illada.alignment.advantages import ADVANTAGES, Centred, LeaveOneOut, SoftmaxDifference, Standardised, is_mixed

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 2.0], [0.5, 0.5, 1.5, 0.1]], dtype=torch.float64)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_groups_of_equal_rewards_get_exactly_zero(name):
    # the mean of three times 0.1 is not 0.1 in floating point
    equal = torch.tensor([[0.1, 0.1, 0.1], [0.0, 0.0, 0.0], [1e9, 1e9, 1e9]], dtype=torch.float64)
    assert equal[0].mean() != 0.1
    assert not is_mixed(equal).any()
    assert torch.equal(ADVANTAGES[name]()(equal), torch.zeros(3, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_constant_added_to_the_rewards_changes_nothing(name):
    advantage = ADVANTAGES[name]()
    torch.testing.assert_close(advantage(REWARDS + 7), advantage(REWARDS))
    assert advantage(REWARDS).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("name", ADVANTAGES)
def test_groups_are_independent_of_each_other(name):
    advantage = ADVANTAGES[name]()
    assert torch.equal(advantage(REWARDS)[1], advantage(REWARDS[1:])[0])


def test_formulas():
    rewards = REWARDS[0]
    mean, std = rewards.mean(), rewards.std()
    torch.testing.assert_close(Centred()(REWARDS)[0], rewards - mean)
    torch.testing.assert_close(Standardised()(REWARDS)[0], (rewards - mean) / (std + 1e-4))
    others = torch.stack([(rewards.sum() - reward) / 3 for reward in rewards])
    torch.testing.assert_close(LeaveOneOut()(REWARDS)[0], rewards - others)


def test_softmax_weights_of_each_sign_add_up_to_one_and_can_be_left_out():
    attract = SoftmaxDifference(psi=2.0, negative=0.0)(REWARDS)
    repel = SoftmaxDifference(psi=2.0, positive=0.0)(REWARDS)
    torch.testing.assert_close(attract.sum(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(repel.sum(1), -torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(attract + repel, SoftmaxDifference(psi=2.0)(REWARDS))
    torch.testing.assert_close(attract[0], (2 * REWARDS[0]).exp() / (2 * REWARDS[0]).exp().sum())

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.generation.selection import COMMIT_RULES, LowConfidence


@pytest.mark.parametrize("name", COMMIT_RULES)
@given(length=st.integers(1, 40), steps=st.integers(1, 40), seed=st.integers(0, 99))
def test_every_rule_commits_masked_tokens_only_and_all_of_them_by_the_last_step(name, length, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    is_masked = torch.rand(3, length, generator=generator) < 0.7
    for steps_left in range(steps, 0, -1):
        is_committed = COMMIT_RULES[name]()(torch.rand(3, length, generator=generator), is_masked, steps_left)
        assert not (is_committed & ~is_masked).any()
        is_masked = is_masked & ~is_committed
    assert not is_masked.any()


def test_low_confidence_commits_the_surest_first():
    confidence = torch.tensor([[0.9, 0.2, 0.8, 0.4, 0.6]])
    is_masked = torch.tensor([[False, True, True, True, True]])
    assert LowConfidence()(confidence, is_masked, 2).tolist() == [[False, False, True, False, True]]


@given(num_masked=st.integers(0, 50), num_steps=st.integers(1, 60))
def test_commits_spread_as_in_the_published_sampler(num_masked, num_steps):
    is_masked, counts = torch.ones(1, num_masked, dtype=torch.bool), []
    for steps_left in range(num_steps, 0, -1):
        is_committed = LowConfidence()(torch.rand(1, num_masked), is_masked, steps_left)
        counts.append(int(is_committed.sum()))
        is_masked = is_masked & ~is_committed
    assert counts == [num_masked // num_steps + (step < num_masked % num_steps) for step in range(num_steps)]


def test_ties_go_to_the_earlier_token():
    ones = torch.ones(1, 4)
    assert LowConfidence()(ones, ones.bool(), 2).tolist() == [[True, True, False, False]]

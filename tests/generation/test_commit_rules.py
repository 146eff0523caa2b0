import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.errors import UserError
from lit_illada.generation.commit_rules import (
    COMMIT_RULES,
    Entropy,
    EntropyBound,
    Factor,
    LowConfidence,
    Margin,
    Random,
    Threshold,
)
from lit_illada.generation.draws import Draws
from lit_illada.generation.proposals import Proposals

CPU = torch.device("cpu")


def draws(rows, seed=0):
    return Draws(seed, range(rows), CPU).of(range(rows))


def random_proposals(is_masked, seed=0, sharpness=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(int(is_masked.sum()), 7, dtype=torch.float64, generator=generator)
    token_ids = torch.zeros_like(is_masked, dtype=torch.long).masked_scatter(is_masked, logits.argmax(-1))
    return Proposals(token_ids, is_masked, logits)


def with_confidence(*confidences, rest=3):
    """One row of proposals with these confidences; None is not masked. What is left is spread over `rest` tokens."""
    is_masked = torch.tensor([[c is not None for c in confidences]])
    probs = [[c] + [(1 - c) / rest] * rest for c in confidences if c is not None]
    token_ids = torch.zeros_like(is_masked, dtype=torch.long)
    return Proposals(token_ids, is_masked, torch.tensor(probs, dtype=torch.float64).log())


@pytest.mark.parametrize("name", COMMIT_RULES)
@given(length=st.integers(1, 40), steps=st.integers(1, 40), seed=st.integers(0, 99))
def test_every_rule_commits_masked_tokens_only_one_at_least_and_all_by_the_last_step(name, length, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    is_masked = torch.rand(3, length, generator=generator) < 0.7
    noise = draws(3, seed)
    for steps_left in range(steps, 0, -1):
        proposals = random_proposals(is_masked, seed + steps_left)
        is_committed = COMMIT_RULES[name]()(proposals, steps_left, noise)
        assert not (is_committed & ~is_masked).any()
        assert is_committed.any(-1).equal(is_masked.any(-1))
        is_masked = is_masked & ~is_committed
    assert not is_masked.any()


def test_low_confidence_commits_the_most_confident_first():
    proposals = with_confidence(None, 0.3, 0.8, 0.4, 0.6)
    assert LowConfidence()(proposals, 2, draws(1)).tolist() == [[False, False, True, False, True]]


@pytest.mark.parametrize("rule", [LowConfidence(), Random(), Margin(), Entropy()])
@given(num_masked=st.integers(0, 50), num_steps=st.integers(1, 60))
def test_commits_spread_as_in_the_published_sampler(rule, num_masked, num_steps):
    is_masked, counts = torch.ones(1, num_masked, dtype=torch.bool), []
    for steps_left in range(num_steps, 0, -1):
        is_committed = rule(random_proposals(is_masked), steps_left, draws(1))
        counts.append(int(is_committed.sum()))
        is_masked = is_masked & ~is_committed
    assert counts == [num_masked // num_steps + (step < num_masked % num_steps) for step in range(num_steps)]


def test_ties_go_to_the_earlier_token():
    assert LowConfidence()(with_confidence(0.5, 0.5, 0.5, 0.5), 2, draws(1)).tolist() == [[True, True, False, False]]


def test_random_commits_everywhere_equally_often():
    is_masked = torch.ones(4000, 4, dtype=torch.bool)
    is_committed = Random()(random_proposals(is_masked), 4, draws(4000))
    torch.testing.assert_close(is_committed.double().mean(0), torch.full((4,), 0.25).double(), atol=0.03, rtol=0)


def test_margin_and_entropy_rank_by_margin_and_entropy():
    two_ways = torch.tensor([[0.5, 0.48, 0.02], [0.4, 0.3, 0.3]], dtype=torch.float64)
    proposals = Proposals(torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool), two_ways.log())
    assert LowConfidence()(proposals, 2, draws(1)).tolist() == [[True, False]]
    assert Margin()(proposals, 2, draws(1)).tolist() == [[False, True]]
    assert Entropy()(proposals, 2, draws(1)).tolist() == [[True, False]]
    torch.testing.assert_close(proposals.margin, torch.tensor([[0.02, 0.1]], dtype=torch.float64))
    expected = -(two_ways * two_ways.log()).sum(-1)
    torch.testing.assert_close(proposals.entropy[0], expected)


def test_threshold_commits_all_that_reach_it_and_one_at_least():
    assert Threshold(0.8)(with_confidence(0.9, 0.5, None, 0.85), 9, draws(1)).tolist() == [[True, False, False, True]]
    assert Threshold(0.8)(with_confidence(0.3, 0.5, None, 0.4), 9, draws(1)).tolist() == [[False, True, False, False]]


@given(st.lists(st.floats(0.26, 0.999), min_size=1, max_size=12), st.floats(0.1, 4.0))
def test_factor_commits_the_longest_run_that_its_inequality_allows(confidences, factor):
    n = 0
    for i, confidence in enumerate(sorted(confidences, reverse=True), start=1):
        if not (i + 1) * (1 - confidence) < factor:
            break
        n = i
    is_committed = Factor(factor)(with_confidence(*confidences), 99, draws(1))
    expected = LowConfidence()(with_confidence(*confidences), 99, draws(1)) if n == 0 else None
    assert int(is_committed.sum()) == max(n, 1)
    if expected is not None:
        assert is_committed.equal(expected)


@given(st.integers(0, 500), st.floats(0.0, 3.0))
def test_entropy_bound_commits_while_the_entropies_before_stay_within_it(seed, bound):
    proposals = random_proposals(torch.tensor([[True, True, False, True, True, True]]), seed)
    is_committed = EntropyBound(bound)(proposals, 99, draws(1))
    expected, cumulative = set(), 0.0
    for entropy, index in sorted((float(proposals.entropy[0, i]), i) for i in (0, 1, 3, 4, 5)):
        cumulative += entropy
        if cumulative - entropy <= bound:
            expected.add(index)
    assert set(is_committed[0].nonzero()[:, 0].tolist()) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Threshold(0.0), "threshold is 0.0: it must be above 0 and at most 1"),
        (lambda: Threshold(1.5), "threshold is 1.5"),
        (lambda: Factor(0), "factor is 0: it must be above 0"),
        (lambda: EntropyBound(-1), "bound is -1: it must be 0 or more"),
    ],
)
def test_invalid_rules_are_rejected(make, message):
    with pytest.raises(UserError, match=message):
        make()

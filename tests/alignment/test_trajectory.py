"""Trajectory scores against the sampler: its recorded probabilities, and its likelihood by enumeration."""

import itertools
import math

import pytest
import torch

from lit_illada.alignment.completions import Completions
from lit_illada.alignment.estimators import MeanField
from lit_illada.alignment.scores import completions_noise, rollout_policy
from lit_illada.alignment.trajectories import LeftToRight, StepMerge, Trajectory
from lit_illada.errors import UserError
from lit_illada.generation.commit_rules import Margin, Random, Threshold
from lit_illada.generation.remasking import REMASK_RULES
from lit_illada.generation.trace import Trace

PROMPTS = [[2, 3], [4], [3, 2, 4], [2, 2]]
ROLLOUTS = {
    "appended": {},
    "fixed": {"canvas": "fixed"},
    "one block": {"block_length": 6},
    "two tokens per step": {"tokens_per_step": 2},
    "random order": {"commit_rule": Random()},
    "margin, cut last block": {"commit_rule": Margin(), "block_length": 4, "canvas": "fixed"},
    "threshold": {"commit_rule": Threshold(), "num_steps": 3, "tokens_per_step": None},
}


@pytest.mark.parametrize("predicts_next", [False, True])
@pytest.mark.parametrize("name", ROLLOUTS)
def test_scores_equal_the_probabilities_at_which_the_sampler_committed(name, predicts_next, world):
    model = world.build_model(predicts_next=predicts_next)
    lookback = {"lookback": 1} if predicts_next else {}
    completions, traces = world.rollout(model, PROMPTS, score_after_eos=True, **ROLLOUTS[name], **lookback)
    token = world.scored(Trajectory(), completions, rollout_policy(model, 1.0, world.MASK)).token
    for row, trace in enumerate(traces):
        confidence = torch.tensor(trace.confidence, dtype=torch.float64)
        torch.testing.assert_close(token[row][completions.is_canvas[row]].exp(), confidence)


def test_temperature_of_the_policy_divides_its_logits(model, world):
    """At block length 1 and temperature 2 the frequencies of the first token are those that the scores give."""
    rows = 4000
    completions, _ = world.rollout(model, [[2, 3]] * rows, max_new_tokens=1, block_length=1, temperature=2.0)
    tokens = completions.token_ids[:, 2]
    score_fn = rollout_policy(model, 2.0, world.MASK)
    probability = world.scored(Trajectory(), completions, score_fn).sequence.exp().detach()
    for token in range(1, 5):
        p = probability[tokens == token][0].item()
        assert abs((tokens == token).double().mean().item() - p) < 5 * math.sqrt(p * (1 - p) / rows)


def orders(length):
    """Traces of every text of `length` tokens, committed one at a time in every order."""
    for ids in itertools.product(range(1, 5), repeat=length):
        for steps in itertools.permutations(range(length)):
            filler = [0.0] * length
            yield Trace(list(ids), [0] * length, list(steps), filler, filler, [1] * length)


def completions_of(traces):
    prompts = [[2, 3]] * len(traces)
    return Completions.of_rollout(
        prompts, traces, range(len(traces)), stop_token_ids=[], pad_token_id=0, is_appended=False
    )


def test_trajectory_scores_are_the_exact_likelihood_of_a_sampler_with_random_order(model, world):
    """p(text, order) = 1/L! · Π_i p(token i | state): adds up to 1, and gives the sampler's frequencies of texts."""
    traces = list(orders(3))
    with torch.no_grad():
        score_fn = rollout_policy(model, 1.0, world.MASK)
        likelihood = world.scored(Trajectory(), completions_of(traces), score_fn).sequence.exp() / math.factorial(3)
    assert likelihood.sum().item() == pytest.approx(1)
    text_likelihood = {}
    for trace, value in zip(traces, likelihood.tolist(), strict=True):
        text = tuple(trace.token_ids)
        text_likelihood[text] = text_likelihood.get(text, 0) + value
    rows = 3000
    options = {"max_new_tokens": 3, "is_stopping": False, "commit_rule": Random()}
    _, sampled = world.rollout(model, [[2, 3]] * rows, **options)
    for text, p in text_likelihood.items():
        frequency = sum(tuple(trace.token_ids) == text for trace in sampled) / rows
        assert abs(frequency - p) < 5 * math.sqrt(p * (1 - p) / rows) + 1e-3


def test_blocks_of_one_token_on_a_fixed_canvas_equal_left_to_right(model, world):
    completions, _ = world.rollout(model, PROMPTS, canvas="fixed", block_length=1, score_after_eos=True)
    by_state = world.scored(Trajectory(), completions, model)
    torch.testing.assert_close(by_state.token, world.scored(LeftToRight(), completions, model).token)


def test_one_segment_is_mean_field_and_many_are_the_trajectory_to_the_bit(model, world):
    completions, _ = world.rollout(model, PROMPTS, canvas="fixed", is_stopping=False)
    with torch.no_grad():
        one, many, mean_field, exact = (
            world.scored(estimator, completions, model)
            for estimator in (StepMerge(num_segments=1), StepMerge(num_segments=6), MeanField(), Trajectory())
        )
    assert torch.equal(one.token, mean_field.token)
    assert torch.equal(many.token, exact.token)


@pytest.mark.parametrize("estimator", [StepMerge(num_segments=2), Trajectory(shrink=3)])
def test_merged_steps_are_scored_in_the_state_before_the_first_of_them(estimator, model, world):
    trace = Trace([2, 3, 4, 2, 3, 1], [0] * 6, [3, 0, 5, 1, 4, 2], [0.0] * 6, [0.0] * 6, [1] * 6)
    completions = completions_of([trace])
    noise = completions_noise(completions, 7, 0)
    first, second = estimator.views(completions, noise, 0.0)
    assert first.is_masked[0, 2:].tolist() == [True] * 6
    assert first.is_selected[0, 2:].tolist() == [False, True, False, True, False, True]
    assert second.is_masked[0, 2:].tolist() == second.is_selected[0, 2:].tolist() == [True, False] * 3


def test_error_of_merged_steps_falls_with_their_number(model, world):
    completions, _ = world.rollout(model, [[2, 3]] * 60, max_new_tokens=12, block_length=12, is_stopping=False)
    with torch.no_grad():
        exact = world.scored(Trajectory(), completions, model).sequence
        errors = [
            (world.scored(StepMerge(num_segments=n), completions, model).sequence - exact).abs().mean().item()
            for n in (1, 3, 6, 12)
        ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


def test_steps_that_commit_only_the_tail_cost_no_pass(model, world):
    trace = Trace([2, 1, 4, 4], [0] * 4, [1, 3, 0, 2], [0.0] * 4, [0.0] * 4, [1] * 4)
    completions = Completions.of_rollout([[2]], [trace], [0], stop_token_ids=[1], pad_token_id=0, is_appended=False)
    views = list(Trajectory().views(completions, completions_noise(completions, 7, 0), 0.0))
    assert [view.is_masked[0, 1:].tolist() for view in views] == [
        [True, True, False, True],
        [False, True, False, False],
    ]


def test_rollouts_that_mask_tokens_again_are_refused(model, world):
    rule = REMASK_RULES["remdm_cap"]()
    completions, _ = world.rollout(model, PROMPTS, remask=rule, num_steps=12, tokens_per_step=None, block_length=6)
    with pytest.raises(UserError, match="may mask tokens again"):
        world.scored(Trajectory(), completions, model)


def test_steps_are_unknown_on_every_rank_if_the_sampler_may_mask_tokens_again(model, world):
    """By the setting: the traces of one rank may happen to hold no token that was masked again."""
    rule = REMASK_RULES["remdm_cap"](eta=1e-12)
    settings = {"num_steps": 12, "tokens_per_step": None, "block_length": 6}
    completions, traces = world.rollout(model, PROMPTS, remask=rule, **settings)
    assert all(count == 1 for trace in traces for count in trace.num_commits)
    assert completions.steps is None

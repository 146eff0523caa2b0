"""The parts together: every preset raises the reward of a tiny model in a few rollouts."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from lit_illada.alignment.estimators import BlockElbo, EuboMix
from lit_illada.alignment.forms import Anchor
from lit_illada.alignment.loss import Frozen, policy_loss
from lit_illada.config import load

GOOD, ROLLOUTS, GROUPS = 3, 7, 6
METHODS = "d1 coupled wd1 spg gdpo espo bgpo step_merge cj_grpo left_to_right".split()


@cache
def settings(name):
    config = load("align", [f"alignment={name}"]).alignment
    if isinstance(config.estimator, EuboMix | BlockElbo):  # the blocks of this rollout
        config = replace(config, estimator=replace(config.estimator, block_length=3))
    return replace(config, updates=min(config.updates, 3), group_size=6)


def train(config, world):
    """Mean rewards by rollout: the fraction of tokens that are GOOD."""
    model, reference = world.build_model(), world.build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    rewards = []
    for rollout in range(ROLLOUTS):
        prompts = [[2, 3]] * (GROUPS * config.group_size)
        completions, _ = world.rollout(model, prompts, is_stopping=False, canvas="fixed", seed=rollout)
        reward_PG = (completions.token_ids[:, 2:] == GOOD).double().mean(1).view(GROUPS, -1)
        rewards.append(reward_PG.mean().item())
        advantage_S = config.advantage(reward_PG).flatten()

        def scores(of, update, completions=completions, rollout=rollout):
            number = config.mask_number(rollout, update)
            return world.scored(config.estimator, completions, of, number, masked_prompt=config.masked_prompt)

        with torch.no_grad():
            old = [scores(model, update) for update in range(config.updates)]
        for update in range(config.updates):
            with torch.no_grad():
                ref = scores(reference, update) if config.needs(Anchor.REF) else None
            loss = policy_loss(config, completions, scores(model, update), advantage_S, Frozen(old[update], ref))
            optimizer.zero_grad()
            (loss.sum / loss.count).backward()
            optimizer.step()
    return rewards


@pytest.mark.parametrize("name", METHODS)
def test_reward_rises(name, world):
    rewards = train(settings(name), world)
    assert rewards[-1] > rewards[0] + 0.15


def test_preference_pairs_raise_the_likelihood_of_the_chosen_texts_over_the_rejected(world):
    config = load("align", ["alignment=vrpo", "preferences=pairs.jsonl"]).alignment
    model, reference = world.build_model(), world.build_model()
    pairs = world.texts([[GOOD, GOOD, 2], [4, 2, 4, 4], [GOOD, 2, GOOD, GOOD], [2, 4]])
    advantage_S = torch.tensor([1.0, -1.0, 1.0, -1.0])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for step in range(8):
        with torch.no_grad():
            ref = world.scored(config.estimator, pairs, reference, step)
        loss = policy_loss(
            config, pairs, world.scored(config.estimator, pairs, model, step), advantage_S, Frozen(ref=ref)
        )
        losses.append((loss.sum / loss.count).item())
        optimizer.zero_grad()
        loss.sum.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(2))
    assert losses[-1] < 0.8 * losses[0]

"""The policy loss: its start, its independence of micro-batches, and its gradient against the expected reward."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch

from lit_illada.alignment.advantages import ADVANTAGES, Centred, LeaveOneOut
from lit_illada.alignment.completions import Completions
from lit_illada.alignment.config import AlignmentConfig, Normaliser
from lit_illada.alignment.estimators import ESTIMATORS, Elbo, MeanField
from lit_illada.alignment.forms import Clip, ClipAlways, Dpo, LinearBound, Reinforce
from lit_illada.alignment.levels import Level, Units
from lit_illada.alignment.loss import Frozen, mismatch, policy_loss
from lit_illada.alignment.regularisers import KlEstimate, KlOld, KlRef
from lit_illada.alignment.scores import rollout_policy
from lit_illada.alignment.trajectories import LeftToRight, Trajectory
from lit_illada.errors import UserError
from lit_illada.generation.trace import Trace

PROMPTS = [prompt for prompt in ([2, 3], [4], [3, 2, 4]) for _ in range(2)]  # groups of two
ADVANTAGE = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0], dtype=torch.float64)
ALL = torch.arange(6)


def alignment(estimator, level=Level.SEQUENCE_MEAN, form=None, **changes):
    return AlignmentConfig(estimator=estimator, level=level, form=form or Clip(), **changes)


@pytest.fixture(scope="module")
def completions(model, world):
    return world.rollout(model, PROMPTS)[0]


def parts_of(values, index, width):
    return None if values is None else values.select(index, width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_ratio_is_one_at_the_start_to_the_bit(name, dtype, completions, world):
    """The stored scores of the rollout policy come from another pass, without gradients."""
    model = world.build_model().to(dtype)
    config = alignment(ESTIMATORS[name](), regulariser=KlRef(), level=Level.TOKEN, masked_prompt=0.15)
    scores = world.scored(config.estimator, completions, model, masked_prompt=0.15)
    with torch.no_grad():
        frozen_model = copy.deepcopy(model)
        frozen = world.scored(config.estimator, completions, frozen_model, masked_prompt=0.15)
    assert torch.equal(scores.by_draw, frozen.by_draw)
    loss = policy_loss(config, completions, scores, ADVANTAGE, Frozen(frozen, frozen))
    assert loss.stats["log_ratio"][0] == 0
    assert loss.stats["kl"][0] == 0
    assert loss.stats["clipped"][0] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dpo_loss_is_log_two_at_the_start_to_the_bit(dtype, world):
    model = world.build_model().to(dtype)
    pairs = world.texts([[4, 2, 3, 1], [2, 2, 1], [3, 1], [4, 4, 4, 4, 1]])
    config = alignment(Elbo(num_draws=8), Level.SEQUENCE, Dpo(), group_size=2)
    scores = world.scored(config.estimator, pairs, model)
    with torch.no_grad():
        frozen = world.scored(config.estimator, pairs, copy.deepcopy(model))
    loss = policy_loss(config, pairs, scores, torch.tensor([1.0, -1.0, 1.0, -1.0]), Frozen(ref=frozen))
    assert loss.count == 2
    assert (loss.sum / loss.count.to(dtype)).item() == torch.tensor(2.0, dtype=dtype).log().item()
    fresh = world.scored(config.estimator, pairs, model, update=1).detach()
    other = policy_loss(config, pairs, scores, torch.tensor([1.0, -1.0, 1.0, -1.0]), Frozen(ref=fresh))
    assert other.sum != loss.sum  # the reference under other masks


CONFIGS = {
    "token clip": alignment(Elbo(2), Level.TOKEN, Clip()),
    "step clip": alignment(Trajectory(), Level.STEP, Clip()),
    "sequence reinforce": alignment(Elbo(2), Level.SEQUENCE, Reinforce()),
    "per draw": alignment(Elbo(4), Level.SEQUENCE_MEAN, LinearBound(), per_draw=True),
    "self-normalised": alignment(Elbo(2), Level.TOKEN, ClipAlways()),
    "kl": alignment(Elbo(2), Level.SEQUENCE_MEAN, regulariser=KlRef(level=Level.TOKEN)),
    "kl of sequences": alignment(
        Elbo(2), regulariser=KlOld(level=Level.SEQUENCE, estimate=KlEstimate.K2, divided_by_length=True)
    ),
    "pairs": alignment(Elbo(2), Level.SEQUENCE, Dpo(), group_size=2),
}


@pytest.mark.parametrize("normaliser", list(Normaliser))
@pytest.mark.parametrize("level", [Level.TOKEN, Level.SEQUENCE_MEAN])
def test_self_normalised_loss_divides_by_the_clipped_ratios_of_the_batch(level, normaliser, completions, model, world):
    """StableDRL off policy, in plain Python: a unit's ratio is not divided by itself."""
    form = ClipAlways(low=0.5, high=0.5)
    with torch.no_grad():
        policy = world.scored(MeanField(), completions, model)
        old = world.scored(MeanField(), completions, world.build_model(seed=1))
    loss = policy_loss(
        alignment(MeanField(), level, form, normaliser=normaliser), completions, policy, ADVANTAGE, Frozen(old)
    )
    total = count = 0.0
    for s, advantage in enumerate(ADVANTAGE.tolist()):
        where = completions.is_scored[s]
        change = (policy.token - old.token)[s][where]
        units = change.tolist() if level is Level.TOKEN else [change.mean().item()]
        ratios = [min(max(math.exp(unit), 0.5), 1.5) for unit in units]
        share = {
            Normaliser.UNITS: (1.0, sum(ratios)),
            Normaliser.SEQUENCES: (1 / len(units), sum(ratios) / len(units)),
            Normaliser.COMPLETIONS: (1.0, sum(ratios) / len(units)),
            Normaliser.CANVAS: (1.0, int(completions.is_canvas[s].sum()) * sum(ratios) / len(units)),
        }[normaliser]
        total -= share[0] * advantage * sum(ratios)
        count += share[1]
    assert (loss.sum / loss.count).item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("normaliser", list(Normaliser))
@pytest.mark.parametrize("name", CONFIGS)
def test_sums_and_counts_of_micro_batches_add_up_to_those_of_the_batch(name, normaliser, completions, model, world):
    config = replace(CONFIGS[name], normaliser=normaliser)
    other = world.build_model(seed=1)
    with torch.no_grad():
        policy, frozen = (world.scored(config.estimator, completions, one) for one in (model, other))
    advantage = torch.tensor([1.0, -1.0] * 3) if config.form.is_pair else ADVANTAGE
    whole = policy_loss(config, completions, policy, advantage, Frozen(frozen, frozen))
    sums, counts = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for index in (ALL[4:], ALL[:4]):  # in another order
        part = completions.select(index)
        scores, old = (values.select(index, part.token_ids.shape[1]) for values in (policy, frozen))
        loss = policy_loss(config, part, scores, advantage[index], Frozen(old, old))
        sums, counts = sums + loss.sum, counts + loss.count
    torch.testing.assert_close(sums, whole.sum)
    torch.testing.assert_close(counts, whole.count)


def test_normalisers_by_hand(completions, model, world):
    """The mean over tokens and the mean over completions of the mean over tokens differ by the lengths."""
    with torch.no_grad():
        scores = world.scored(MeanField(), completions, model)
    token, length = scores.token, completions.num_scored
    assert len(length.unique()) > 1
    per_token = -(ADVANTAGE[:, None] * token * completions.is_scored).sum(1)
    config = alignment(MeanField(), Level.TOKEN, Reinforce())
    want = {
        Normaliser.UNITS: per_token.sum() / length.sum(),
        Normaliser.SEQUENCES: (per_token / length).mean(),
        Normaliser.COMPLETIONS: per_token.sum() / 6,
        Normaliser.CANVAS: per_token.sum() / completions.is_canvas.sum(),
    }
    for normaliser, value in want.items():
        loss = policy_loss(replace(config, normaliser=normaliser), completions, scores, ADVANTAGE, Frozen())
        torch.testing.assert_close(loss.sum / loss.count, value)


@pytest.mark.parametrize("normaliser", list(Normaliser))
@pytest.mark.parametrize(
    "name", [name for name, config in CONFIGS.items() if not config.needs_scores_at_zero_advantage]
)
def test_completions_without_advantage_need_no_scores(name, normaliser, completions, world):
    config = replace(CONFIGS[name], normaliser=normaliser)
    model, other = world.build_model(), world.build_model(seed=1)
    advantage = torch.tensor([0.0, 1.0, 0.0, 0.0, 2.0, -2.0] if not config.form.is_pair else [1.0, -1.0] * 3)
    index = advantage.nonzero()[:, 0]
    with torch.no_grad():
        old = world.scored(config.estimator, completions, other)
    some = world.scored(config.estimator, completions.select(index), model)
    some = some.spread(index, *completions.token_ids.shape)
    every = world.scored(config.estimator, completions, model)
    results = []
    for scores, is_scored in ((every, None), (some, advantage != 0)):
        loss = policy_loss(config, completions, scores, advantage, Frozen(old, old), is_scored_S=is_scored)
        gradient = torch.autograd.grad(loss.sum, list(model.parameters()))
        results.append([loss.sum, loss.count, *gradient])
    for whole, part in zip(*results, strict=True):
        torch.testing.assert_close(part, whole)
    assert loss.stats["score"][1] == len(index)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("pairs", "kl", "kl of sequences")])
def test_groups_of_equal_rewards_take_part_with_a_gradient_of_zero(name, completions, world):
    model = world.build_model()
    config = CONFIGS[name]
    scores = world.scored(config.estimator, completions, model)
    advantage = Centred()(torch.full((3, 2), 0.7)).flatten()
    loss = policy_loss(config, completions, scores, advantage, Frozen())
    loss.sum.backward()
    assert loss.sum == 0
    assert loss.count > 0
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_uncounted_groups_leave_sum_and_count(completions, model, world):
    config = alignment(MeanField(), Level.TOKEN, regulariser=KlRef(coefficient=1.0))
    other = world.build_model(seed=1)
    with torch.no_grad():
        policy, frozen = (world.scored(config.estimator, completions, one) for one in (model, other))
    advantage = ADVANTAGE * torch.tensor([1, 1, 0, 0, 1, 1])
    loss = policy_loss(config, completions, policy, advantage, Frozen(frozen, frozen), advantage != 0)
    index = torch.tensor([0, 1, 4, 5])
    part = completions.select(index)
    width = part.token_ids.shape[1]
    scores, old = policy.select(index, width), frozen.select(index, width)
    alone = policy_loss(config, part, scores, advantage[index], Frozen(old, old))
    torch.testing.assert_close((loss.sum, loss.count), (alone.sum, alone.count))


def test_empty_views_and_completions_take_part(world):
    """A completion without tokens, as a truncated prompt leaves it, has no unit but keeps the graph."""
    model = world.build_model()
    empty = world.texts([[], []])
    for estimator in (Elbo(), LeftToRight()):
        scores = world.scored(estimator, empty, model, num_views=2)
        loss = policy_loss(alignment(estimator), empty, scores, torch.tensor([1.0, -1.0]), Frozen())
        loss.sum.backward()
        assert loss.sum == 0
        assert loss.count == 0


def test_levels_sum_the_tokens_of_their_units(model, world):
    trace = Trace([2, 3, 4, 1], [0] * 4, [1, 0, 1, 2], [0.5] * 4, [0.0] * 4, [1] * 4)
    completions = Completions.of_rollout([[2]], [trace], [0], stop_token_ids=[1], pad_token_id=0, is_appended=False)
    token = torch.tensor([[[0.0, 1.0, 2.0, 4.0, 8.0]]])
    sums = {level: Units.of(level, completions).sum(token)[0, 0].tolist() for level in Level}
    assert sums == {"token": [0, 1, 2, 4, 8], "step": [2, 5, 8], "sequence": [15], "sequence_mean": [3.75]}
    with pytest.raises(UserError, match=r"alignment.level is 'step', but the steps of the completions are unknown"):
        Units.of(Level.STEP, replace(completions, steps=None))


def test_the_level_of_the_regulariser_is_named_where_steps_are_unknown(model, world):
    completions = world.texts([[2, 3], [3, 2]])
    config = alignment(Elbo(), regulariser=KlRef(level=Level.STEP))
    scores = world.scored(Elbo(), completions, model)
    with pytest.raises(
        UserError, match=r"alignment.regulariser.level is 'step'.*set alignment.regulariser.level=token"
    ):
        policy_loss(config, completions, scores, torch.tensor([1.0, -1.0]), Frozen(ref=scores))


def every_trajectory(length):
    """Traces of every text of `length` tokens, in every order of single commits."""
    filler = [0.0] * length
    return [
        Trace(list(ids), [0] * length, list(steps), filler, filler, [1] * length)
        for ids in itertools.product(range(1, 5), repeat=length)
        for steps in itertools.permutations(range(length))
    ]


TOY = [
    (Reinforce(), Level.SEQUENCE),
    (Clip(), Level.TOKEN),
    (Clip(), Level.SEQUENCE),
    (Clip(low=0.0, high=0.0), Level.STEP),
    (LinearBound(), Level.SEQUENCE),
]


@pytest.mark.parametrize(("form", "level"), TOY, ids=lambda value: str(value))
@pytest.mark.parametrize(("advantage", "fraction"), [(LeaveOneOut(), 1.0), (Centred(), 0.5)], ids=["loo", "centred"])
def test_expected_gradient_is_that_of_the_expected_reward(form, level, advantage, fraction, world):
    """All pairs of trajectories of a sampler with random order, weighted by their probability, against finite
    differences of Σ p(trajectory)·reward. The group's own mean as baseline costs the factor (G − 1)/G."""
    model = world.build_model()
    traces = every_trajectory(2)
    prompts = [[2, 3]] * len(traces)
    completions = Completions.of_rollout(
        prompts, traces, range(len(traces)), stop_token_ids=[], pad_token_id=0, is_appended=False
    )
    reward = torch.tensor([float(trace.token_ids == [3, 2]) + 0.3 * trace.token_ids[0] for trace in traces]).double()
    score_fn = rollout_policy(model, 1.0, world.MASK)

    def scores():
        return world.scored(Trajectory(), completions, score_fn)

    def expected_reward():
        with torch.no_grad():
            return (scores().sequence.exp() / math.factorial(2) * reward).sum().item()

    policy = scores()
    probability = policy.sequence.detach().exp() / 2
    assert probability.sum().item() == pytest.approx(1)
    first, second = torch.cartesian_prod(torch.arange(len(traces)), torch.arange(len(traces))).unbind(1)
    index = torch.stack([first, second], 1).flatten()
    weighted = advantage(reward[index].view(-1, 2)) * (probability[first] * probability[second])[:, None]
    config = alignment(Trajectory(), level, form, normaliser=Normaliser.COMPLETIONS, group_size=2)
    width = completions.token_ids.shape[1]
    loss = policy_loss(config, completions.select(index), policy.select(index, width), weighted.flatten(), Frozen())
    gradients = torch.autograd.grad(-loss.sum / 2, list(model.parameters()))

    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in model.parameters()]
    values = {}
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            for parameter, change in zip(model.parameters(), direction, strict=True):
                parameter.add_(step * change)
            values[step] = expected_reward()
            for parameter, change in zip(model.parameters(), direction, strict=True):
                parameter.sub_(step * change)
    want = fraction * (values[1e-5] - values[-1e-5]) / 2e-5
    got = sum((gradient * change).sum().item() for gradient, change in zip(gradients, direction, strict=True))
    assert got == pytest.approx(want, rel=1e-5)
    assert abs(want) > 1e-3


def test_mismatch_is_zero_for_the_sampler_and_positive_under_another_temperature(model, world):
    completions, _ = world.rollout(model, [[2, 3]] * 200, score_after_eos=True)
    total, count = mismatch(world.scored(Trajectory(), completions, rollout_policy(model, 1.0, 0)), completions)
    assert count == completions.is_scored.sum()
    assert abs(total / count) < 1e-9
    total, count = mismatch(world.scored(Trajectory(), completions, rollout_policy(model, 2.0, 0)), completions)
    assert total / count > 0.01


@pytest.mark.parametrize("name", ADVANTAGES)
def test_first_loss_of_a_group_is_zero_though_its_gradient_is_not(name, world):
    """With ratio 1 the loss is −A, which adds up to 0 in a group: not a sign of a missing gradient."""
    model = world.build_model()
    completions = world.texts([[4, 2, 3, 1], [2, 2, 1, 1]])
    config = alignment(MeanField(), Level.SEQUENCE_MEAN, Clip(), advantage=ADVANTAGES[name](), group_size=2)
    advantage = config.advantage(torch.tensor([[1.0, 0.0]])).flatten()
    loss = policy_loss(config, completions, world.scored(MeanField(), completions, model), advantage, Frozen())
    loss.sum.backward()
    assert abs(loss.sum.item()) < 1e-12
    assert any(parameter.grad.abs().max() > 1e-3 for parameter in model.parameters())

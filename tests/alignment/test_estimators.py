"""Every estimator's mean against enumeration over all masks, with its stated bias."""

import itertools
import math

import pytest
import torch

from lit_illada.alignment.estimators import (
    ESTIMATORS,
    BlockElbo,
    Coupled,
    CoupledFull,
    Elbo,
    EuboMix,
    LeftToRight,
    MeanField,
    Quadrature,
    StepMerge,
    Trajectory,
)
from lit_illada.alignment.scores import completions_noise
from lit_illada.batch import Layout, TokenBatch
from lit_illada.errors import UserError
from lit_illada.objective.config import DiffusionObjectiveConfig, MaskDraw
from lit_illada.objective.diffusion import DiffusionObjective
from lit_illada.objective.loss import NoisyBatch
from lit_illada.objective.mask_ratio import Uniform

PROMPT, ANSWER, COPIES = [2, 3], [4, 2, 3, 1], 3000
ALL = range(len(ANSWER))


class Table:
    """log p(y_i | exactly these positions of the answer masked), for every mask."""

    def __init__(self, model, mask_token_id, answer=ANSWER):
        length = len(answer)
        masks = [mask for k in range(1, length + 1) for mask in itertools.combinations(range(length), k)]
        ids = torch.tensor([PROMPT + answer] * len(masks))
        select = torch.zeros_like(ids, dtype=torch.bool)
        for row, mask in enumerate(masks):
            select[row, [len(PROMPT) + i for i in mask]] = True
        with torch.no_grad():
            logits = model(ids.masked_fill(select, mask_token_id), Layout.whole_rows(*ids.shape))
        log_prob = logits.log_softmax(-1).gather(2, ids[..., None])[..., 0] * select
        self.of = dict(zip(masks, log_prob[:, len(PROMPT) :], strict=True))

    def mean(self, k, among=ALL, also=()):
        """Mean of log p over the masks of k tokens `among` some, with the tokens `also` masked and not counted."""
        chosen = list(itertools.combinations(among, k))
        total = torch.zeros(len(ANSWER), dtype=torch.float64)
        for mask in chosen:
            counted = torch.tensor([i in mask for i in range(len(ANSWER))])
            total += self.of[tuple(sorted({*mask, *also}))] * counted
        return total / len(chosen)


@pytest.fixture(scope="module")
def table(model, world):
    return Table(model, world.MASK)


def bound(table, among=ALL, also=()):
    length = len(among)
    return sum(length / k * table.mean(k, among, also) / length for k in range(1, length + 1))


def half_full_half_pair(table, low, high):
    length = len(ANSWER)
    mean = table.of[tuple(range(length))] / 2
    num_nodes = 400
    for node in range(num_nodes):
        t = low + (high - low) * (node + 0.5) / num_nodes
        for mask, log_prob in table.of.items():
            # the mask occurs as the first part and as the complement of the first part
            first = t ** len(mask) * (1 - t) ** (length - len(mask)) / t
            second = (1 - t) ** len(mask) * t ** (length - len(mask)) / (1 - t)
            mean = mean + (first + second) * log_prob / (2 * num_nodes)
    return mean


EXPECTED = {
    "elbo": (Elbo(num_draws=2), bound),
    "elbo iid": (Elbo(num_draws=2, stratified=False), bound),
    "coupled": (Coupled(num_pairs=1), bound),
    "coupled stratified": (Coupled(num_pairs=3), bound),
    "coupled_full": (CoupledFull(), lambda table: half_full_half_pair(table, 0.2, 0.8)),
    "quadrature": (
        Quadrature(),
        # nodes 0.113, 0.5, 0.887 of L = 4 are the counts 1 (at least 1), 2 and 4
        lambda table: 5 / 18 * 4 * table.mean(1) + 8 / 18 * 4 / 2 * table.mean(2) + 5 / 18 * 4 / 4 * table.mean(4),
    ),
    "block_elbo": (
        BlockElbo(block_length=3),
        lambda table: bound(table, range(3), also=[3]) + bound(table, range(3, 4)),
    ),
    "block_elbo of one block": (BlockElbo(block_length=9), bound),
    "eubo_mix, lower": (EuboMix(block_length=None), bound),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_mean_over_masks_equals_enumeration(name, table, model, world):
    estimator, expected = EXPECTED[name]
    with torch.no_grad():
        token = world.scored(estimator, world.texts([ANSWER] * COPIES), model).token[:, len(PROMPT) :]
    error = (token.mean(0) - expected(table)).abs()
    assert (error <= 5 * token.std(0) / math.sqrt(COPIES) + 1e-12).all()


def test_every_estimator_is_covered():
    names = {type(estimator) for estimator, _ in EXPECTED.values()}
    assert names | {MeanField, Trajectory, StepMerge, LeftToRight} == set(ESTIMATORS.values())


def test_mean_field_is_the_fully_masked_state(table, model, world):
    token = world.scored(MeanField(), world.texts([ANSWER]), model).token[0, len(PROMPT) :]
    torch.testing.assert_close(token, table.of[(0, 1, 2, 3)])


def test_left_to_right_is_the_chain_rule_with_later_tokens_masked(table, model, world):
    scores = world.scored(LeftToRight(), world.texts([ANSWER]), model)
    torch.testing.assert_close(scores.token[0, 2:], torch.stack([table.of[tuple(range(i, 4))][i] for i in range(4)]))


@pytest.mark.parametrize("num_draws", [1, 2])
def test_upper_bound_of_few_draws_equals_enumeration_over_their_masks(num_draws, model, world):
    answer, exponent = [4, 2, 3], 1.5
    table = Table(model, world.MASK, answer)
    chance = {mask: 1 / (3 * math.comb(3, len(mask))) for mask in table.of}
    want = torch.zeros(3, dtype=torch.float64)
    for masks in itertools.product(table.of, repeat=num_draws):
        scale = 3 / len(set().union(*masks))  # from the masked tokens to all
        for i in range(3):
            terms = [3 / len(mask) * table.of[mask][i].exp() ** exponent for mask in masks if i in mask]
            if terms:
                value = math.log(sum(terms) / num_draws) / exponent
                want[i] += math.prod(chance[mask] for mask in masks) * value * scale
    estimator = EuboMix(block_length=None, num_draws=num_draws, exponent=exponent, mix=1.0)
    with torch.no_grad():
        upper = world.scored(estimator, world.texts([answer] * COPIES), model).upper[:, 2:]
    assert ((upper.mean(0) - want).abs() <= 5 * upper.std(0) / math.sqrt(COPIES)).all()


def test_upper_bound_of_every_mask_as_often_as_it_is_drawn_is_the_stated_bound(table):
    """(1/b)·log E[w·1[i masked]·p^b]: the masks of k = 1, 2, 3, 4 of 4 tokens have probability 3, 2, 3 and 12 of 48."""
    masks = [mask for mask in table.of for _ in range((3, 2, 3, 12)[len(mask) - 1])]
    log_prob = torch.stack([table.of[mask] for mask in masks])[:, None]
    weight = torch.tensor([4 / len(mask) for mask in masks], dtype=torch.float64)[:, None, None].expand_as(log_prob)
    estimator = EuboMix(block_length=None, num_draws=48, exponent=1.5, mix=1.0)
    terms = weight * log_prob.exp() ** 1.5 * (log_prob != 0)
    upper = estimator.upper(log_prob, weight, log_prob != 0, torch.tensor([4]))
    torch.testing.assert_close(upper, terms.mean(0).log() / 1.5)


@pytest.mark.parametrize("num_draws", [1, 2, 5])
@pytest.mark.parametrize("block_length", [None, 1, 2])
def test_dropped_tokens_do_not_weaken_the_upper_bound(block_length, num_draws, world):
    """If every log p falls by 0.1, the bound falls by 0.1 per scored token, as the likelihood does."""
    estimator = EuboMix(block_length, num_draws, mix=1.0)
    completions = world.texts([ANSWER] * 50)
    views = list(estimator.views(completions, completions_noise(completions, 7, 0), 0.0))
    is_selected = torch.stack([view.is_selected for view in views])
    weight = torch.stack([view.weight.expand(completions.token_ids.shape) for view in views])
    log_prob = -torch.rand(is_selected.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    high, low = (
        estimator.upper((log_prob - by) * is_selected, weight, is_selected, completions.num_scored) for by in (0.0, 0.1)
    )
    torch.testing.assert_close((high - low).sum(1), 0.1 * completions.num_scored.double())


def test_mix_is_between_the_bounds_and_used_for_negative_advantages_only(model, world):
    completions = world.texts([ANSWER, ANSWER])
    parts = {mix: world.scored(EuboMix(None, 4, mix=mix), completions, model) for mix in (0.0, 0.25, 1.0)}
    torch.testing.assert_close(parts[0.0].upper, parts[0.0].token)
    torch.testing.assert_close(parts[0.25].upper, 0.25 * parts[1.0].upper + 0.75 * parts[0.0].token)
    used = parts[1.0].for_advantage(torch.tensor([1.0, -1.0]), per_draw=False)[0]
    assert torch.equal(used[0], parts[1.0].token[0])
    assert torch.equal(used[1], parts[1.0].upper[1])


def test_dropped_tokens_leave_the_gradient_of_the_upper_bound_finite(world):
    model = world.build_model()
    scores = world.scored(EuboMix(None, 1), world.texts([ANSWER] * 4), model)
    scores.upper.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_bound_is_the_loss_of_the_objective_under_the_same_masks(model, world):
    """The objective's exact-k draw with density U[0, 1] and weight 1/t, on this estimator's random numbers."""
    completions = world.texts([ANSWER] * 8)
    noise = completions_noise(completions, 7, 0)
    (view,) = Elbo().views(completions, noise, 0.0)
    config = DiffusionObjectiveConfig(mask_ratio=Uniform(epsilon=0.0), mask_draw=MaskDraw.EXACT_K)
    objective = DiffusionObjective(config, world.MASK, 0, 8)
    ids = completions.token_ids
    batch = TokenBatch(ids, completions.is_scored, completions.ids, Layout.whole_rows(*ids.shape))
    k_S = view.is_masked.sum(1)
    noisy = NoisyBatch(
        ids.masked_fill(view.is_masked, world.MASK), batch.layout, view.is_masked, ids[view.is_masked],
        batch.is_maskable, k_S / 4, torch.ones(8),
    )  # fmt: skip
    scores = model(noisy.noisy_ids, noisy.layout, noisy.is_masked, noisy.targets)
    loss = objective.loss(scores, noisy)
    bound = world.scored(Elbo(), completions, model).sequence.sum()
    assert loss.sum.item() == pytest.approx(-bound.item(), rel=1e-5)


def test_masks_of_one_draw_are_those_of_the_objectives_exact_k(world):
    """k uniform on 1…L, every subset of a size equally often."""
    completions = world.texts([ANSWER] * 12000)
    (view,) = Elbo().views(completions, completions_noise(completions, 7, 0), 0.0)
    code = (view.is_masked[:, 2:].long() * torch.tensor([1, 2, 4, 8])).sum(1)
    counts = code.bincount(minlength=16)
    assert counts[0] == 0
    for mask in range(1, 16):
        fraction = 1 / (4 * math.comb(4, mask.bit_count()))
        assert abs(counts[mask] / 12000 - fraction) < 5 * math.sqrt(fraction / 12000)


@pytest.mark.parametrize("name", ["mean_field", "elbo", "coupled", "block_elbo"])
def test_masked_prompt_masks_this_fraction_of_the_prompt_and_never_scores_it(name, world):
    completions = world.texts([ANSWER] * 4000)
    views = list(ESTIMATORS[name]().views(completions, completions_noise(completions, 7, 0), 0.15))
    for view in views:
        assert view.is_masked[:, :2].double().mean() == pytest.approx(0.15, abs=0.02)
        assert not view.is_selected[:, :2].any()
        assert not (view.is_selected & ~view.is_masked).any()


def test_tokens_after_a_stop_token_are_masked_and_not_scored(model, world):
    completions, _ = world.rollout(model, [[2, 3]] * 40, canvas="fixed")
    is_tail = completions.is_canvas & ~completions.is_scored
    assert is_tail.any()
    for name, cls in ESTIMATORS.items():
        for view in cls().views(completions, completions_noise(completions, 7, 0), 0.0):
            assert not (view.is_selected & is_tail).any(), name
            if not cls.needs_steps:
                assert view.is_masked[is_tail].all(), name


def test_score_after_eos_scores_the_whole_canvas(model, world):
    completions, _ = world.rollout(model, [[2, 3]] * 4, canvas="fixed", score_after_eos=True)
    assert torch.equal(completions.is_scored, completions.is_canvas)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_scoring_runs_the_views_of_the_estimator_or_as_many_as_asked(name, model, world):
    completions, _ = world.rollout(model, [[2, 3]] * 3)
    calls = []

    def counting(*args):
        calls.append(1)
        return model(*args)

    estimator = ESTIMATORS[name]()
    scores = world.scored(estimator, completions, counting)
    assert len(calls) == estimator.num_views(completions)
    calls.clear()
    more = world.scored(estimator, completions, counting, num_views=20)
    assert len(calls) == 20
    assert torch.equal(more.by_draw, scores.by_draw)


def test_predicts_next_reads_the_logits_of_the_position_before(world):
    shifted = world.build_model(predicts_next=True)
    plain = world.build_model()
    completions = world.texts([ANSWER])
    token = world.scored(MeanField(), completions, shifted).token[0, 2:]
    ids = completions.token_ids.masked_fill(completions.is_canvas, world.MASK)
    log_prob = plain(ids, Layout.whole_rows(*ids.shape)).log_softmax(-1)[0]
    torch.testing.assert_close(token, torch.stack([log_prob[1 + i, ANSWER[i]] for i in range(4)]))


def test_estimator_of_the_rollouts_states_refuses_completions_without_a_trace(model, world):
    with pytest.raises(UserError, match="have no trace"):
        world.scored(Trajectory(), world.texts([ANSWER]), model)

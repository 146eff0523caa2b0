"""Scores do not depend on the order of rows or the micro-batch; the noise is common to all models."""

import pytest
import torch

from lit_illada.alignment.estimators import ESTIMATORS, Elbo
from lit_illada.alignment.scores import Scores, completions_noise

PROMPTS = [[2, 3], [4], [3, 2, 4], [2, 2], [], [4, 4, 2, 3]]


@pytest.fixture(scope="module")
def completions(model, world):
    return world.rollout(model, PROMPTS)[0]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_scores_are_independent_of_row_order_and_micro_batch(name, completions, model, world):
    estimator = ESTIMATORS[name]()
    whole = world.scored(estimator, completions, model, masked_prompt=0.3)
    width = completions.token_ids.shape[1]
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    shuffled = world.scored(estimator, completions.select(order), model, masked_prompt=0.3)
    expected = whole.select(order, shuffled.by_draw.shape[2])
    torch.testing.assert_close(shuffled.by_draw, expected.by_draw)
    parts = [
        world.scored(estimator, completions.select(index), model, masked_prompt=0.3)
        for index in torch.arange(6).split([1, 3, 2])
    ]
    joined = Scores.join(parts)
    torch.testing.assert_close(joined.select(torch.arange(6), width).token, whole.token[:, : joined.token.shape[1]])
    if whole.upper is not None:
        torch.testing.assert_close(joined.upper, whole.upper[:, : joined.upper.shape[1]])


def test_masks_depend_on_seed_update_completion_and_draw(completions):
    def masks(seed=0, update=0, draw=0, rows=completions):
        return completions_noise(rows, seed, update).tokens(draw)

    first = masks()
    assert torch.equal(first, masks())
    for other in (masks(seed=1), masks(update=1), masks(draw=1)):
        assert (first != other).all()
    assert len(first.unique()) == first.numel()


def test_no_two_of_update_completion_and_draw_share_their_numbers(completions):
    numbers = [
        completions_noise(completions, 0, update).uniform_for_ratio(draw) for update in range(8) for draw in range(8)
    ]
    assert len(torch.cat(numbers).unique()) == 8 * 8 * len(completions)


def test_members_of_a_group_share_masks_only_if_asked(completions):
    apart = completions_noise(completions, 0, 0).tokens(0)
    shared = completions_noise(completions.sharing_noise(3), 0, 0).tokens(0)
    assert (apart[0] != apart[1]).all()
    assert torch.equal(shared[0], shared[1])
    assert torch.equal(shared[0], shared[2])
    assert (shared[2] != shared[3]).all()


def test_common_masks_remove_most_of_the_noise_of_a_ratio(model, world):
    """A shared mask leaves the change of the model; fresh masks add their own differences."""
    other = world.build_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.01)
        completions = world.texts([[4, 2, 3, 1, 2, 2]] * 300)
        old = world.scored(Elbo(), completions, model).sequence
        common = world.scored(Elbo(), completions, other).sequence - old
        fresh = world.scored(Elbo(), completions, other, update=1).sequence - old
    assert common.std() < 0.1 * fresh.std()


def test_scoring_leaves_the_global_generator_alone(completions, model, world):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    world.scored(Elbo(num_draws=4), completions, model)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["eubo_mix", "trajectory"])
def test_recomputed_views_give_the_same_gradient_with_fewer_saved_tensors(name, completions, world):
    model = world.build_model()
    counts = {False: [], True: []}
    gradients = {}
    for recompute, saved in counts.items():

        def count(tensor, saved=saved):
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            scores = world.scored(ESTIMATORS[name](), completions, model, recompute=recompute)
        total = scores.sequence.sum() + (0 if scores.upper is None else scores.upper.sum())
        gradients[recompute] = torch.autograd.grad(total, list(model.parameters()))
    torch.testing.assert_close(gradients[True], gradients[False], rtol=0, atol=0)
    assert sum(counts[True]) < 0.2 * sum(counts[False])

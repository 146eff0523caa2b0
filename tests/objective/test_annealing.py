"""Attention-mask annealing: its ends are causal and bidirectional attention, and its masks depend on the step alone."""

import itertools
from dataclasses import replace

import pytest
import torch

from lit_illada.batch import Layout, TokenBatch
from lit_illada.errors import UserError
from lit_illada.model.attention import Attention, visible_tokens
from lit_illada.model.config import AttentionKernel
from lit_illada.model.kernel_choice import SEGMENT_KERNELS
from lit_illada.objective.annealing import draw_visible_later
from lit_illada.objective.config import DiffusionObjectiveConfig, JointDraw
from lit_illada.objective.diffusion import DiffusionObjective
from lit_illada.objective.mask_ratio import Uniform

LENGTHS = [5, 7, 12, 1, 8, 3]  # documents of three rows
T = 12


@pytest.fixture
def batch(tiny):
    ids = torch.randint(1, tiny.known_vocab_size, (3, T), generator=torch.Generator().manual_seed(1))
    layout = Layout.from_lengths(torch.tensor(LENGTHS), T)
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(4, 7), layout)


def corrupt(batch, progress, annealing=0.5, **config):
    objective = DiffusionObjectiveConfig(attention_annealing=annealing, **config)
    return DiffusionObjective(objective, 0, 3, 3).corrupt(batch, progress)


@pytest.mark.parametrize("attention", [AttentionKernel.SDPA, AttentionKernel.MATMUL])
@pytest.mark.parametrize("row_length", [T, None])
@torch.no_grad()
def test_the_ends_are_a_causal_and_a_bidirectional_model(make_model, batch, attention, row_length):
    if row_length is not None:
        batch = replace(batch, layout=Layout.whole_rows(3, T))
    causal, full = make_model(is_causal=True, attention=attention), make_model(attention=attention)
    start, end = corrupt(batch, 0.0), corrupt(batch, 0.5)
    for noisy, reference in ((start, causal), (end, full)):
        want = reference(noisy.noisy_ids, batch.layout, noisy.is_masked, noisy.targets).nll
        torch.testing.assert_close(noisy.scored_by(full).nll, want, atol=2e-6, rtol=1e-5)
    assert end.layout is batch.layout  # kernels without a mask run again
    everything = torch.ones(3, T, T, dtype=torch.bool)
    assert visible_tokens(replace(batch.layout, visible_later=everything), False).equal(
        visible_tokens(batch.layout, False)
    )


def test_pairs_are_those_of_the_slow_rule_and_stay_visible(batch):
    seen = []
    for progress in (0.0, 0.1, 0.2, 0.4, 0.49):
        layout = corrupt(batch, progress).layout
        visible = visible_tokens(layout, False)[:, 0]
        for row, query, key in itertools.product(range(3), range(T), range(T)):
            is_same = layout.segment_ids()[row, query] == layout.segment_ids()[row, key]
            expected = is_same and (key <= query or layout.visible_later[row, query, key])
            assert bool(visible[row, query, key]) == bool(expected)
        seen.append(visible)
    for before, after in itertools.pairwise(seen):
        assert (before <= after).all()
        assert before.sum() < after.sum()


def test_the_visible_fraction_grows_linearly():
    ids = torch.zeros(8, 64, dtype=torch.int64)
    batch = TokenBatch(ids, ids.bool(), torch.arange(8), Layout.whole_rows(8, 64))
    later = torch.ones(64, 64).triu(1).bool()
    for fraction in (0.0, 0.25, 0.8, 1.0):
        seen = draw_visible_later(batch, 0, fraction)[:, later].double().mean()
        assert abs(seen - fraction) <= 4 * (fraction * (1 - fraction) / (8 * later.sum())) ** 0.5


def test_masks_depend_on_seed_row_and_progress_only(batch):
    whole = corrupt(batch, 0.2).layout.visible_later
    assert corrupt(batch, 0.2).layout.visible_later.equal(whole)
    alone = TokenBatch(batch.input_ids[1:2], batch.is_maskable[1:2], batch.row_ids[1:2], Layout.whole_rows(1, T))
    assert corrupt(alone, 0.2).layout.visible_later.equal(whole[1:2])
    assert not whole[0].equal(whole[1])
    assert corrupt(batch, 0.2, None).layout is batch.layout


def test_the_complement_of_a_row_has_its_mask(batch):
    layout = corrupt(batch, 0.2, joint_draw=JointDraw.COMPLEMENTARY, mask_ratio=Uniform(epsilon=0.0)).layout
    assert layout.visible_later[:3].equal(layout.visible_later[3:])
    assert visible_tokens(layout, False).shape == (6, 1, T, T)


def test_segment_kernels_and_useless_fractions_are_rejected(batch):
    layout = corrupt(batch, 0.2).layout
    with pytest.raises(UserError, match=r"has no mask for objective\.block_length or attention_annealing"):
        Attention.plan(SEGMENT_KERNELS[0], layout, False, torch.device("cpu"), torch.bfloat16, 8)
    for fraction in (0.0, -0.1, 1.5):
        with pytest.raises(UserError, match=r"objective\.attention_annealing"):
            DiffusionObjectiveConfig(attention_annealing=fraction)
    with pytest.raises(UserError, match=r"block_length=4 fixes the attention of blocks"):
        DiffusionObjectiveConfig(attention_annealing=0.5, block_length=4)

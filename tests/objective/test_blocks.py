"""Division of rows into blocks, and the draws within blocks, against the rows' own draws and slow loops."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.batch import Layout, TokenScores
from lit_illada.errors import UserError
from lit_illada.objective.blocks import count_in_block, divide
from lit_illada.objective.config import DiffusionObjectiveConfig, JointDraw, MaskDraw, Normaliser
from lit_illada.objective.diffusion import DiffusionObjective
from lit_illada.objective.joint import draw_block_uniforms
from lit_illada.objective.loss import NoisyBatch
from lit_illada.objective.mask_ratio import MASK_RATIOS, Band, Uniform, VarianceOptimal
from lit_illada.objective.masking import draw_masks
from lit_illada.objective.token_weight import Cart, Focal
from lit_illada.objective.weighting import WEIGHTINGS, Elbo

ROW = 12
LENGTHS = torch.tensor([5, 7, 12, 1, 8, 3])  # documents of three rows
LAYOUT = Layout.from_lengths(LENGTHS, ROW)


def slow_blocks(layout, is_maskable, block_length):
    """Token lists of each row's blocks: runs of equal maskability, cut from the start, or for context from the end."""
    rows = []
    for positions, maskable in zip(layout.position_ids.tolist(), is_maskable.tolist(), strict=True):
        runs = []
        for column, position in enumerate(positions):
            if position == 0 or maskable[column] != maskable[column - 1]:
                runs.append([])
            runs[-1].append(column)
        blocks = []
        for run in runs:
            short = 0 if maskable[run[0]] else len(run) % block_length
            parts = [run[:short]] + [run[i : i + block_length] for i in range(short, len(run), block_length)]
            blocks += [part for part in parts if part]
        rows.append(blocks)
    return rows


def listed(blocks_BT):
    return [[(row == n).nonzero()[:, 0].tolist() for n in range(int(row.max()) + 1)] for row in blocks_BT]


maskables = st.lists(st.booleans(), min_size=3 * ROW, max_size=3 * ROW).map(lambda x: torch.tensor(x).view(3, ROW))


@given(maskables, st.integers(1, 14))
def test_blocks_equal_the_slow_division(is_maskable, block_length):
    blocks = divide(LAYOUT, is_maskable, block_length)
    assert listed(blocks) == slow_blocks(LAYOUT, is_maskable, block_length)
    counts = [[int(is_maskable[b, blocks[b] == n].sum()) for n in blocks[b]] for b in range(3)]
    assert count_in_block(is_maskable, blocks).tolist() == counts


def test_a_prompt_ends_with_a_whole_block_and_a_document_begins_with_one():
    is_maskable = torch.arange(12)[None] >= 5
    assert divide(Layout.whole_rows(1, 12), is_maskable, 4).tolist() == [[0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]]
    assert divide(LAYOUT, torch.ones(3, 12, dtype=torch.bool), 4)[0].tolist() == [0] * 4 + [1] + [2] * 4 + [3] * 3


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("mask_draw", MaskDraw)
@pytest.mark.parametrize("name", MASK_RATIOS)
def test_the_masks_of_a_block_are_those_of_a_row_of_its_own(name, mask_draw, weighting):
    generator = torch.Generator().manual_seed(2)
    is_maskable = torch.rand(3, ROW, generator=generator) < 0.8
    blocks = divide(LAYOUT, is_maskable, 4)
    noise = torch.rand(3, ROW, generator=generator, dtype=torch.float64)
    u = torch.rand(3, ROW, generator=generator, dtype=torch.float64).gather(1, blocks)
    parts = mask_draw, MASK_RATIOS[name](), WEIGHTINGS[weighting]()
    masks = draw_masks(*parts, u, noise, is_maskable, blocks)
    for b, row in enumerate(listed(blocks)):
        for part in row:
            alone = draw_masks(*parts, u[b, part[:1]], noise[b, part][None], is_maskable[b, part][None])
            assert masks.is_masked[b, part].equal(alone.is_masked[0])
            for got, want in ((masks.mask_ratio, alone.mask_ratio), (masks.density, alone.density)):
                assert got[b, part].equal(want.expand(len(part)))
            assert (masks.weight is None) == (alone.weight is None)
            if masks.weight is not None:
                assert masks.weight[b, part].equal(alone.weight.expand(len(part)))


@pytest.mark.parametrize("draw", JointDraw)
def test_every_joint_draw_is_uniform_in_every_block(draw):
    blocks = (torch.arange(12) // 3).expand(8192, -1)
    u = draw_block_uniforms(draw, 7, torch.arange(8192), 16, blocks)
    assert u.min() > 0
    assert u.max() < 1
    assert u[:, ::3].equal(u[:, 2::3])
    for block in range(4):
        histogram = torch.histc(u[:, 3 * block], 8, 0, 1) / 8192
        assert (histogram - 1 / 8).abs().max() < 0.02


def test_joint_draws_hold_in_every_block():
    rows, blocks = torch.arange(32), torch.arange(6).expand(32, -1)
    pairs = draw_block_uniforms(JointDraw.ANTITHETIC, 5, rows, 32, blocks).view(16, 2, 6)
    torch.testing.assert_close(pairs.sum(1), torch.ones(16, 6, dtype=torch.float64))
    even = draw_block_uniforms(JointDraw.STRATIFIED, 5, rows, 32, blocks)
    for block in range(6):  # one per stratum, up to a common rotation
        gaps = even[:, block].sort().values.diff()
        assert gaps.max() < 2 / 32 + 1e-9
    iid = draw_block_uniforms(JointDraw.IID, 5, rows, 32, blocks)
    assert len(iid.unique()) == iid.numel()


def loss_of(config, noisy, nll):
    objective = DiffusionObjective(config, 9, seed=0, batch_rows=3)
    return objective.loss(TokenScores(nll.clone().requires_grad_(), torch.zeros(len(nll)).bool()), noisy)


def corrupted(world, config):
    batch = world.make_batch(3, ROW, lengths=LENGTHS, is_maskable=torch.arange(36).view(3, 12) % 7 != 0)
    return DiffusionObjective(config, 9, seed=3, batch_rows=3).corrupt(batch)


@pytest.mark.parametrize("normaliser", [Normaliser.TOKENS, Normaliser.MASKED])
@pytest.mark.parametrize("mask_draw", MaskDraw)
@pytest.mark.parametrize("corrected", [False, True])
def test_the_loss_is_the_sum_of_the_losses_of_the_blocks_as_rows(world, mask_draw, corrected, normaliser):
    config = DiffusionObjectiveConfig(
        mask_ratio=Band(low=0.0, high=1.0), mask_draw=mask_draw, importance_corrected=corrected,
        token_weight=Focal(gamma=2.0), normaliser=normaliser, block_length=4,
    )  # fmt: skip
    noisy = corrupted(world, config)
    nll = torch.rand(len(noisy.targets), generator=torch.Generator().manual_seed(5)) * 3
    nll_BT, total, count = noisy.spread(nll), 0.0, 0.0
    for b, row in enumerate(listed(noisy.layout.blocks)):
        for part in row:
            ratio, density, weight = (
                None if values is None else values[b, part[:1]]
                for values in (noisy.mask_ratio, noisy.density, noisy.weight)
            )
            parts = (values[b, part][None] for values in (noisy.noisy_ids, noisy.is_masked, noisy.is_maskable))
            ids, is_masked, is_maskable = parts
            layout = Layout.whole_rows(1, len(part))
            alone = NoisyBatch(ids, layout, is_masked, ids[is_masked], is_maskable, ratio, density, weight)
            loss = loss_of(replace(config, block_length=None), alone, nll_BT[b, part][is_masked[0]])
            total, count = total + float(loss.sum.detach()), count + float(loss.count)
    got = loss_of(config, noisy, nll)
    assert float(got.sum.detach()) == pytest.approx(total, rel=1e-5)
    assert float(got.count) == count
    assert float(got.bins.num_masked.sum()) == noisy.is_masked.sum()


def test_cart_sees_the_clean_blocks_before_a_token_and_its_own_block(world):
    noisy = corrupted(world, DiffusionObjectiveConfig(block_length=4, mask_ratio=Uniform(epsilon=0.4)))
    blocks, segments, p = noisy.layout.blocks, noisy.layout.segment_ids(), 0.3
    want = torch.zeros(3, ROW)
    for b in range(3):
        for n in range(ROW):
            for i in range(ROW):
                is_visible = blocks[b, i] < blocks[b, n] or (blocks[b, i] == blocks[b, n] and not noisy.is_masked[b, i])
                if i != n and segments[b, i] == segments[b, n] and is_visible:
                    want[b, n] += 0.5 * p * (1 - p) ** (abs(n - i) - 1)
    got = Cart(p)(torch.zeros(3, ROW), noisy.is_masked, noisy.layout)
    torch.testing.assert_close(got[noisy.is_masked], want[noisy.is_masked], atol=1e-6, rtol=1e-5)


def test_complementary_rows_mask_the_rest_of_every_block(world):
    config = DiffusionObjectiveConfig(
        mask_ratio=Uniform(epsilon=0.0), joint_draw=JointDraw.COMPLEMENTARY, block_length=4
    )
    noisy = corrupted(world, config)
    one, other = noisy.is_masked.chunk(2)
    assert (one ^ other).equal(noisy.is_maskable[:3])
    torch.testing.assert_close(noisy.mask_ratio[:3], 1 - noisy.mask_ratio[3:])
    assert noisy.layout.blocks.shape == (6, ROW)


def test_the_variance_optimal_density_learns_from_blocks(world):
    config = DiffusionObjectiveConfig(
        mask_ratio=VarianceOptimal(), mask_draw=MaskDraw.EXACT_K, importance_corrected=True, block_length=4
    )
    objective = DiffusionObjective(config, 9, seed=3, batch_rows=3)
    noisy = objective.corrupt(world.make_batch(3, ROW, lengths=LENGTHS))
    objective.loss(TokenScores(torch.ones(len(noisy.targets)), torch.zeros(len(noisy.targets)).bool()), noisy)
    objective.end_step(lambda moments: moments)
    num_blocks = sum(len(row) for row in listed(noisy.layout.blocks))
    assert float(objective.moments[1].sum()) == num_blocks
    squares = [
        (float(noisy.weight[b, part[0]]) * int(noisy.is_masked[b, part].sum())) ** 2
        for b, row in enumerate(listed(noisy.layout.blocks))
        for part in row
    ]
    assert float(objective.moments[0].sum()) == pytest.approx(sum(squares), rel=1e-5)


def test_blocks_do_not_depend_on_the_micro_batch(world):
    objective = DiffusionObjective(DiffusionObjectiveConfig(block_length=4, joint_draw="kronecker"), 9, 3, 4)
    whole = objective.corrupt(world.make_batch(4, ROW))
    halves = [objective.corrupt(replace_rows(world.make_batch(4, ROW), rows)) for rows in (slice(0, 2), slice(2, 4))]
    assert torch.cat([half.is_masked for half in halves]).equal(whole.is_masked)


def replace_rows(batch, rows):
    layout = Layout.whole_rows(2, ROW)
    parts = (part[rows] for part in (batch.input_ids, batch.is_maskable, batch.row_ids))
    return type(batch)(*parts, layout)


def test_a_block_of_no_tokens_is_rejected():
    with pytest.raises(UserError, match=r"objective\.block_length is 0: it must be 1 or more, or null"):
        DiffusionObjectiveConfig(block_length=0)
    assert Elbo() == DiffusionObjectiveConfig(block_length=1).weighting

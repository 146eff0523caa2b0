import pytest
import torch
from scipy import stats

from lit_illada.objective.config import JointDraw
from lit_illada.objective.joint import draw_uniforms

every_draw = pytest.mark.parametrize("draw", JointDraw)


@every_draw
def test_each_ratio_is_marginally_uniform(draw):
    u = draw_uniforms(draw, 7, torch.arange(8192), batch_rows=16)
    assert u.dtype == torch.float64
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
    # the first row of the batch too, over steps and over seeds
    first = torch.cat([draw_uniforms(draw, seed, torch.arange(0, 4096, 16), batch_rows=16) for seed in range(8)])
    assert stats.kstest(first.numpy(), "uniform").pvalue > 1e-3


@every_draw
def test_a_ratio_depends_on_the_seed_and_the_row_only(draw):
    ids = torch.arange(96)
    whole = draw_uniforms(draw, 3, ids, batch_rows=24)
    by_rank = [draw_uniforms(draw, 3, ids[rank::3], batch_rows=24) for rank in range(3)]
    assert torch.equal(torch.stack(by_rank, 1).flatten(), whole)
    assert torch.equal(draw_uniforms(draw, 3, ids[48:].flip(0), batch_rows=24), whole[48:].flip(0))
    assert not torch.equal(draw_uniforms(draw, 4, ids, batch_rows=24), whole)


def test_stratified_puts_one_row_into_each_stratum_of_every_step():
    u = draw_uniforms(JointDraw.STRATIFIED, 5, torch.arange(60), batch_rows=12).view(5, 12)
    strata = (u * 12).long()
    assert bool((strata.sort(dim=1).values == torch.arange(12)).all())
    assert len({tuple(row.tolist()) for row in strata}) == 5


def test_antithetic_pairs_sum_to_1():
    u = draw_uniforms(JointDraw.ANTITHETIC, 5, torch.arange(40), batch_rows=8).view(20, 2)
    assert torch.allclose(u.sum(1), torch.ones(20, dtype=torch.float64), atol=1e-15)


@pytest.mark.parametrize("first", [0, 17, 10**9])
def test_kronecker_is_even_in_every_window(first):
    u = draw_uniforms(JointDraw.KRONECKER, 5, torch.arange(first, first + 32), batch_rows=1).sort().values
    centred = (u - (torch.arange(32) + 0.5) / 32).abs()
    assert centred.max() < 2.5 / 32

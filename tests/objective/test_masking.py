import pytest
import torch
from scipy import stats

from lit_illada.objective.config import MaskDraw
from lit_illada.objective.exact_k import draw_counts
from lit_illada.objective.mask_ratio import Band, Cosine, Fixed, Tabulated, Uniform
from lit_illada.objective.masking import draw_masks, exactly_k, num_masked
from lit_illada.objective.noise import Purpose, uniform
from lit_illada.objective.weighting import Elbo

ROWS, T = 4000, 20
NOISE = uniform(1, Purpose.MASK, torch.arange(ROWS), torch.arange(T))
ALL = torch.ones(ROWS, T, dtype=torch.bool)


def masks(draw, u, is_maskable=ALL, p=Uniform(epsilon=0)):  # noqa: B008
    """Masks of the ratio at the quantile u, which is u itself for U[0, 1]."""
    return draw_masks(draw, p, Elbo(), torch.full((ROWS,), u, dtype=torch.float64), NOISE, is_maskable)


@pytest.mark.parametrize("draw", MaskDraw)
@pytest.mark.parametrize("t", [0.05, 0.35, 0.95])
def test_the_masked_fraction_is_t_at_every_position(draw, t):
    is_masked = masks(draw, t).is_masked.double()
    assert is_masked.mean(0).sub(t).abs().max() < 4 * (t * (1 - t) / ROWS) ** 0.5


@pytest.mark.parametrize("draw", MaskDraw)
def test_prompt_tokens_are_never_masked(draw):
    is_maskable = NOISE.flip(1) < 0.5
    drawn = masks(draw, 0.9, is_maskable)
    assert not (drawn.is_masked & ~is_maskable).any()
    assert not masks(draw, 1.0, torch.zeros_like(ALL)).is_masked.any()
    assert torch.equal(masks(draw, 1.0, is_maskable).is_masked, is_maskable)


def test_exact_k_masks_k_of_the_maskable_tokens():
    is_maskable = NOISE.flip(1) < 0.5
    drawn = masks(MaskDraw.EXACT_K, 0.3, is_maskable)
    length = is_maskable.sum(1)
    assert torch.equal(drawn.is_masked.sum(1), (length * 3 + 9) // 10)
    has_any = length > 0
    assert torch.allclose(drawn.mask_ratio[has_any] * length[has_any], drawn.is_masked.sum(1)[has_any].double())


def test_every_subset_of_size_k_is_equally_likely():
    is_chosen = exactly_k(torch.full((ROWS,), 2), NOISE[:, :5], ALL[:, :5])
    code = (is_chosen.long() * 2 ** torch.arange(5)).sum(1)
    _, counts = code.unique(return_counts=True)
    assert len(counts) == 10
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_k_is_uniform_when_t_is():
    u = (torch.arange(7000, dtype=torch.float64) + 0.5) / 7000
    assert torch.bincount(num_masked(u, torch.full((7000,), 7))).tolist() == [0] + [1000] * 7


def test_k_survives_rounding():
    t = torch.tensor([0.07, 0.29, 0.15, 0.3, 1.0, 1e-9, 0.5], dtype=torch.float64)
    length = torch.tensor([100, 100, 20, 10, 13, 5, 0])
    assert num_masked(t, length).tolist() == [7, 29, 3, 3, 13, 1, 0]


@pytest.mark.parametrize("p", [Uniform(), Cosine(), Band()])
def test_exact_k_draws_as_many_as_bernoulli_of_rows_with_a_mask(p):
    u = (torch.arange(ROWS, dtype=torch.float64) + 0.5) / ROWS
    k = draw_masks(MaskDraw.EXACT_K, p, Elbo(), u, NOISE, ALL).is_masked.sum(1)
    expected = stats.binom(T, p.quantile(u).numpy()[:, None]).pmf(range(T + 1)).mean(0)
    expected = expected[1:] / expected[1:].sum()
    assert (torch.bincount(k, minlength=T + 1)[1:] / ROWS).tolist() == pytest.approx(expected.tolist(), abs=2 / ROWS)


def test_rows_without_maskable_tokens_give_finite_values():
    for draw in MaskDraw:
        drawn = masks(draw, 0.5, torch.zeros_like(ALL))
        assert bool((drawn.mask_ratio > 0).all())
        for numbers in filter(torch.is_tensor, (drawn.density, drawn.weight)):
            assert bool((numbers.isfinite() & (numbers > 0)).all())


def test_the_complement_covers_every_maskable_token_exactly_once():
    is_maskable = NOISE.flip(1) < 0.7
    both = masks(MaskDraw.BERNOULLI, 0.3, is_maskable).with_complement(is_maskable)
    first, second = both.is_masked.chunk(2)
    assert torch.equal(first ^ second, is_maskable)
    assert not (first & second).any()
    assert torch.allclose(both.mask_ratio[:ROWS] + both.mask_ratio[ROWS:], torch.ones(ROWS, dtype=torch.float64))


def test_a_fixed_ratio_masks_exactly_its_fraction():
    assert masks(MaskDraw.EXACT_K, 0.15, p=Fixed()).is_masked.sum(1).unique().tolist() == [3]


def test_draws_follow_the_current_learnt_density():
    """Tables of counts are cached by density: two learnt densities must not share one."""
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    lengths = torch.full_like(u, 32).long()
    early, late = Tabulated(torch.tensor([0.9, 0.1]).double(), 0.0), Tabulated(torch.tensor([0.1, 0.9]).double(), 0.0)
    assert early != late
    counts = [draw_counts(density, Elbo(), u, lengths)[0].double().mean().item() for density in (early, late, early)]
    assert counts[0] < 12 < 20 < counts[1]
    assert counts[2] == counts[0]

"""Laws of every density in the table; a new row is tested without editing this file."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from lit_illada.errors import UserError
from lit_illada.objective.mask_ratio import (
    MASK_RATIOS,
    Band,
    Beta,
    Cosine,
    Curriculum,
    Fixed,
    LogitNormal,
    Polynomial,
    Uniform,
    VarianceOptimal,
    has_symmetric_support,
    is_symmetric,
)


def learnt():
    config = VarianceOptimal(num_bins=8)
    return config.learnt(torch.stack([torch.arange(8.0) ** 2 * 50, torch.full((8,), 50.0)]))


# Every row as it comes, and variants that a default does not reach.
DENSITIES = {name: cls() for name, cls in MASK_RATIOS.items()} | {
    "curriculum at 0.5": Curriculum().at(0.5),
    "curriculum at its border": Curriculum(start=0.0, end=1.0, std=0.05).at(1.0),
    "variance_optimal learnt": learnt(),
    "polynomial below 1": Polynomial(exponent=0.5),
    "narrow logit_normal": LogitNormal(mean=1.0, std=0.3),
    "arcsine": Beta(a=0.5, b=0.5),
}
every_density = pytest.mark.parametrize("p", DENSITIES.values(), ids=DENSITIES)
every_continuous = pytest.mark.parametrize(
    "p", [p for p in DENSITIES.values() if p.has_density], ids=[n for n, p in DENSITIES.items() if p.has_density]
)


def sample(p, n, seed):
    """(n,) independent ratios."""
    return p.quantile(torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


U = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000


@every_density
def test_draws_stay_in_the_support(p):
    extremes = torch.tensor([2.0**-53, 1e-9, 0.5, 1 - 1e-9, 1 - 2.0**-53], dtype=torch.float64)
    t = p.quantile(torch.cat([U, extremes]))
    low, high = p.support
    assert t.dtype == torch.float64
    assert 0 <= low <= high <= 1
    assert bool(((t >= low - 1e-15) & (t <= high + 1e-15)).all())


@every_continuous
def test_density_integrates_to_1(p):
    # Over u-spaced nodes, so that a pole at a border is met by nodes that crowd there.
    t = p.quantile(torch.linspace(1e-7, 1 - 1e-7, 20_001, dtype=torch.float64))
    middle = (t[1:] + t[:-1]) / 2
    assert ((p.density(middle) * t.diff()).sum()).item() == pytest.approx(1, abs=2e-3)


@every_continuous
def test_cdf_is_the_integral_of_the_density(p):
    a, b = p.quantile(torch.tensor([0.2, 0.7], dtype=torch.float64)).tolist()
    t = torch.linspace(a, b, 200_001, dtype=torch.float64)
    area = integrate.trapezoid(p.density(t).numpy(), t.numpy())
    assert area == pytest.approx(0.5, abs=1e-4)


@every_continuous
def test_cdf_and_quantile_are_inverse(p):
    assert torch.allclose(p.cdf(p.quantile(U)), U, atol=1e-9)
    low, high = p.support
    around = torch.tensor([low - 0.1, low, high, high + 0.1], dtype=torch.float64)
    assert p.cdf(around).tolist() == pytest.approx([0, 0, 1, 1], abs=1e-7)


@every_continuous
def test_density_is_0_outside_the_support(p):
    low, high = p.support
    assert p.density(torch.tensor([low - 1e-6, high + 1e-6], dtype=torch.float64)).tolist() == [0, 0]


@every_density
def test_samples_match_the_distribution(p):
    t = sample(p, 20_000, seed=5)
    borders = torch.linspace(0, 1, 21, dtype=torch.float64)
    want = p.cdf(borders).diff().numpy()
    got = torch.histogram(t, borders).hist.numpy()
    seen = want * len(t) > 5
    assert got[~seen].sum() <= 5 * (~seen).sum() + 10
    want_counts = want[seen] / want[seen].sum() * got[seen].sum()
    assert stats.chisquare(got[seen], want_counts).pvalue > 1e-4 if seen.sum() > 1 else got[seen].sum() == len(t)


def test_densities_equal_their_closed_forms():
    t = torch.tensor([0.1, 0.37, 0.9], dtype=torch.float64)
    assert torch.allclose(Cosine(epsilon=0).quantile(t), torch.cos(math.pi / 2 * (1 - t)))
    assert torch.allclose(Polynomial(exponent=3, epsilon=0).quantile(t), t**3)
    assert torch.allclose(Polynomial(exponent=0.5, epsilon=0.2).quantile(t), 0.2 + 0.8 * t.sqrt())
    assert torch.allclose(Band(low=0.3, high=0.8, epsilon=0.1).quantile(t), 0.3 + 0.5 * t)
    assert torch.allclose(Band(low=0.0, high=0.8, epsilon=0.1).quantile(t), 0.1 + 0.7 * t)
    beta, bell = stats.beta(2, 5), stats.norm(0.3, 0.8)
    assert np.allclose(Beta(a=2, b=5, epsilon=0).cdf(t), beta.cdf(t), atol=1e-6)
    assert np.allclose(Beta(a=2, b=5, epsilon=0).density(t), beta.pdf(t), atol=2e-3)
    assert np.allclose(LogitNormal(mean=0.3, std=0.8, epsilon=0).cdf(t), bell.cdf(np.log(t / (1 - t))))
    cut = stats.truncnorm(-0.2 / 0.2, 0.8 / 0.2, loc=0.2, scale=0.2)
    assert np.allclose(Curriculum(epsilon=0).density(t), cut.pdf(t))


def test_only_a_curriculum_depends_on_the_progress():
    moving = Curriculum(start=0.2, end=0.8, std=0.05)
    means = [sample(moving.at(progress), 2000, seed=0).mean() for progress in (0, 0.5, 1, 2)]
    assert [round(float(mean), 1) for mean in means] == [0.2, 0.5, 0.8, 0.8]
    assert Uniform().at(0.7) == Uniform()


def test_the_learnt_density_follows_the_root_of_the_second_moment():
    count = torch.full((4,), 1e9, dtype=torch.float64)
    p = VarianceOptimal(num_bins=4, floor=0.2).learnt(
        torch.stack([torch.tensor([1.0, 4, 9, 16]).double() * count, count])
    )
    assert torch.allclose(p.masses, 0.8 * torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64) + 0.05)


def test_the_learnt_density_starts_uniform_and_stays_above_its_floor():
    config = VarianceOptimal(num_bins=4, floor=0.2)
    assert torch.allclose(config.learnt(torch.zeros(2, 4)).masses, torch.full((4,), 0.25, dtype=torch.float64))
    one_bin = torch.tensor([[1e12, 0, 0, 0], [1e3, 1e3, 1e3, 1e3]])
    assert config.learnt(one_bin).masses.min() >= 0.2 / 4


def test_symmetric_distributions_are_recognised():
    assert is_symmetric(Uniform(epsilon=0))
    assert is_symmetric(Beta(a=3, b=3, epsilon=0))
    assert is_symmetric(Fixed(ratio=0.5))
    assert is_symmetric(Band(low=0.3, high=0.7))
    assert not is_symmetric(Beta(a=3, b=2, epsilon=0))
    assert not is_symmetric(Uniform())
    assert not has_symmetric_support(Uniform())
    assert has_symmetric_support(Cosine(epsilon=0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(epsilon=1.0),
        lambda: Band(low=0.8, high=0.3),
        lambda: Polynomial(exponent=0),
        lambda: LogitNormal(std=0),
        lambda: Beta(a=-1),
        lambda: Fixed(ratio=0),
        lambda: Curriculum(start=1.5),
        lambda: VarianceOptimal(floor=0),
    ],
)
def test_invalid_values_are_rejected(make):
    with pytest.raises(UserError, match=r"objective.mask_ratio\..* it must be"):
        make()

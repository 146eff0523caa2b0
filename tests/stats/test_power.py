"""The stated power is what simulated sweeps show; the range of seeds needed holds the true number."""

from math import sqrt

import numpy as np
import pytest
from scipy.special import stdtr
from scipy.stats import nct
from scipy.stats import t as student

from lit_illada.stats.intervals import LEVEL
from lit_illada.stats.moderated import moderate
from lit_illada.stats.power import POWER, power, seeds_needed, seeds_needed_range, visible_effect


@pytest.mark.parametrize(
    ("num_arms", "num_seeds", "effect"), [(4, 3, 3.0), (8, 3, 3.0), (8, 5, 1.5), (8, 8, 1.0), (30, 5, 2.0)]
)
def test_the_power_is_what_simulated_sweeps_show(num_arms, num_seeds, effect):
    """A shared baseline correlates the comparisons, which the formula leaves out: within a few percent."""
    metrics = np.random.default_rng(1).normal(size=(4000, num_arms, num_seeds)) / sqrt(2)
    differences = metrics[:, 1:] - metrics[:, :1]
    differences[:, -1] += effect
    variances, dof = moderate(differences.var(-1, ddof=1), np.float64(num_seeds - 1))
    p = 2 * stdtr(dof, -np.abs(differences.mean(-1)) / np.sqrt(variances / num_seeds))[:, -1]
    found = (p * (num_arms - 1) <= LEVEL).mean()
    expected = power(effect, num_seeds, num_arms - 1)
    assert 0.2 < expected < 0.9
    assert expected - 0.02 < found < expected + 0.09


@pytest.mark.parametrize("num_seeds", [2, 3, 8])
@pytest.mark.parametrize("effect", [0.5, 2.0])
def test_the_power_of_a_single_comparison_is_that_of_the_noncentral_t(num_seeds, effect):
    critical = student.isf(LEVEL / 2, num_seeds - 1)
    expected = nct.sf(critical, num_seeds - 1, effect * sqrt(num_seeds))
    assert power(effect, num_seeds, 1) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("num_comparisons", [1, 7])
@pytest.mark.parametrize("effect", [0.08, 0.5, 3.0])
def test_the_seeds_needed_are_the_fewest_that_reach_the_power(effect, num_comparisons):
    n = seeds_needed(effect, num_comparisons)
    assert power(effect, n, num_comparisons) >= POWER
    assert n == 2 or power(effect, n - 1, num_comparisons) < POWER


@pytest.mark.parametrize("num_seeds", [2, 3, 10])
def test_the_visible_effect_is_found_with_the_stated_power(num_seeds):
    assert power(visible_effect(num_seeds, 4), num_seeds, 4) == pytest.approx(POWER, abs=1e-3)


def test_an_effect_too_small_for_any_sweep_says_so():
    assert seeds_needed(1e-6, 1) is None
    assert seeds_needed(0.0, 1) is None


@pytest.mark.parametrize(("num_seeds", "effect"), [(3, 3.0), (5, 1.5), (8, 1.5)])
def test_the_range_holds_the_true_number_of_seeds(num_seeds, effect):
    """Of samples that give a range, nearly all hold it; the plug-in number was too low in about half."""
    true = seeds_needed(effect, 1)
    samples = np.random.default_rng(2).normal(effect, 1, (150, num_seeds))
    statistics = samples.mean(1) / (samples.std(1, ddof=1) / sqrt(num_seeds))
    ranges = [seeds_needed_range(t, num_seeds - 1, num_seeds, 1) for t in statistics]
    given = [found for found in ranges if found is not None]
    assert len(given) > 50
    hold = [low <= true <= (high or np.inf) for low, high in given]
    assert np.mean(hold) > 0.93


@pytest.mark.parametrize("t", [0.0, 1.0, 4.2])
def test_no_range_where_the_interval_of_the_effect_holds_0(t):
    assert seeds_needed_range(t, 2, 3, 7) is None
    assert seeds_needed_range(-t, 2, 3, 7) is None


@pytest.mark.parametrize("t", [5.0, 50.0, 5000.0])
def test_the_range_is_ordered_and_symmetric(t):
    low, high = seeds_needed_range(t, 2, 3, 7)
    assert 2 <= low <= (high or np.inf)
    assert seeds_needed_range(-t, 2, 3, 7) == (low, high)

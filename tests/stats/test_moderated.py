"""The moderated test keeps its level in sweeps without a difference, and finds more than Student's where there is one.

Fast versions simulate 3 000 sweeps a setting, slow ones 40 000 over the whole grid of seeds and arms.
"""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import stdtr
from scipy.stats import chi2

from lit_illada.stats.comparisons import Finding, compare
from lit_illada.stats.intervals import LEVEL
from lit_illada.stats.moderated import moderate

NORMAL = "normal"
SETTINGS = {
    # name -> (distribution, standard deviations of the arms, the first being the baseline)
    NORMAL: ("normal", lambda k: np.ones(k)),
    "heavy tails": ("t3", lambda k: np.ones(k)),
    "Laplace": ("laplace", lambda k: np.ones(k)),
    "skewed": ("skewed", lambda k: np.ones(k)),
    "every other arm 4 times as noisy": ("normal", lambda k: np.where(np.arange(k) % 2, 4.0, 1.0)),
    "one arm 5 times as noisy": ("normal", lambda k: np.where(np.arange(k) == k - 1, 5.0, 1.0)),
    "one arm 10 times as noisy": ("normal", lambda k: np.where(np.arange(k) == k - 1, 10.0, 1.0)),
    "one quiet arm": ("normal", lambda k: np.where(np.arange(k) == k - 1, 0.2, 1.0)),
    "baseline 5 times as noisy": ("normal", lambda k: np.where(np.arange(k) == 0, 5.0, 1.0)),
    "noisy arm with heavy tails": ("t3", lambda k: np.where(np.arange(k) == k - 1, 5.0, 1.0)),
}


def sweeps(rng, num, num_arms, num_seeds, setting):
    """Metrics (num, arms, seeds) of sweeps without a difference; seeds shift all arms alike, which pairing removes."""
    distribution, scales = SETTINGS[setting]
    shape = (num, num_arms, num_seeds)
    noise = {
        "normal": lambda: rng.normal(size=shape),
        "t3": lambda: rng.standard_t(3, shape) / sqrt(3),
        "laplace": lambda: rng.laplace(size=shape) / sqrt(2),
        "skewed": lambda: rng.exponential(size=shape) - 1,
    }[distribution]()
    return noise * scales(num_arms)[:, None]


def p_values(metrics, is_missing=None, *, is_moderated=True):
    """Uncorrected p values (sweeps, arms − 1); is_missing (sweeps, arms, seeds)."""
    differences = metrics[:, 1:] - metrics[:, :1]
    if is_missing is not None:
        differences = np.where(is_missing[:, 1:] | is_missing[:, :1], np.nan, differences)
    numbers = (~np.isnan(differences)).sum(-1)
    means, variances = np.nanmean(differences, -1), np.nanvar(differences, -1, ddof=1)
    dof = numbers - 1.0
    if is_moderated:
        variances, dof = moderate(variances, dof)
    return 2 * stdtr(dof, -np.abs(means) / np.sqrt(variances / numbers))


def false_verdicts(setting, num_arms, num_seeds, num, *, has_missing_run=False, is_moderated=True):
    """The fraction of sweeps with any verdict."""
    rng = np.random.default_rng([num_arms, num_seeds])
    metrics = sweeps(rng, num, num_arms, num_seeds, setting)
    is_missing = None
    if has_missing_run:
        is_missing = np.zeros(metrics.shape, bool)
        is_missing[np.arange(num), rng.integers(0, num_arms, num), rng.integers(0, num_seeds, num)] = True
    p = p_values(metrics, is_missing, is_moderated=is_moderated)
    return (p.min(-1) * (num_arms - 1) <= LEVEL).mean()  # Holm rejects anything just when it rejects the smallest


def assert_keeps_the_level(fraction, num):
    assert fraction <= LEVEL + 3.5 * sqrt(LEVEL * (1 - LEVEL) / num)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("num_arms", "num_seeds"), [(3, 2), (3, 3), (8, 2), (8, 3), (8, 5), (30, 3)])
def test_sweeps_without_a_difference_give_false_verdicts_no_more_often_than_stated(setting, num_arms, num_seeds):
    num = 1000 if num_arms == 30 else 3000
    assert_keeps_the_level(false_verdicts(setting, num_arms, num_seeds, num), num)


@pytest.mark.parametrize("setting", [NORMAL, "heavy tails", "one arm 5 times as noisy"])
@pytest.mark.parametrize(("num_arms", "num_seeds"), [(3, 3), (8, 3), (8, 5)])
def test_a_missing_run_makes_no_false_verdicts(setting, num_arms, num_seeds):
    assert_keeps_the_level(false_verdicts(setting, num_arms, num_seeds, 3000, has_missing_run=True), 3000)


@pytest.mark.slow
@pytest.mark.parametrize("has_missing_run", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("num_arms", [3, 4, 5, 8, 15, 30])
@pytest.mark.parametrize("num_seeds", [2, 3, 4, 5, 8])
def test_the_level_holds_over_the_whole_grid(num_seeds, num_arms, setting, has_missing_run):
    if has_missing_run and num_seeds == 2:
        pytest.skip("an arm with one seed is not tested")
    num = 40_000 if num_arms <= 8 else 8000
    assert_keeps_the_level(false_verdicts(setting, num_arms, num_seeds, num, has_missing_run=has_missing_run), num)


@pytest.mark.parametrize(
    ("num_arms", "effect", "factor"), [(4, 2.0, 1.5), (8, 2.0, 2.0), (8, 3.0, 2.5), (30, 3.0, 3.5)]
)
def test_three_seeds_find_several_times_as_much_as_with_students_variances(num_arms, effect, factor):
    """effect: in standard deviations of the paired differences."""
    metrics = sweeps(np.random.default_rng(5), 4000, num_arms, 3, NORMAL)
    metrics[:, -1] += effect * sqrt(2)
    found, students = (
        (p_values(metrics, is_moderated=is_moderated)[:, -1] * (num_arms - 1) <= LEVEL).mean()
        for is_moderated in (True, False)
    )
    assert found > factor * students


@given(
    st.lists(st.tuples(st.floats(1e-6, 100), st.integers(1, 7)), min_size=1, max_size=6),
    st.floats(1e-3, 1e3),
)
def test_moderation_follows_its_definition(rows, scale):
    """Against a slow reference; a comparison's variance never falls, and the unit does not matter."""
    variances, dof = (np.array(column, float) for column in zip(*rows, strict=True))
    found, found_dof = moderate(variances, dof)
    for j in range(len(rows)):
        others = [v / (chi2.ppf(0.5, d) / d) for i, (v, d) in enumerate(rows) if i != j]
        own, own_dof = variances[j], dof[j]
        prior = min(3, 2 * own_dof - 1, sum(d for i, d in enumerate(dof) if i != j))
        if not others:
            assert (found[j], found_dof[j]) == pytest.approx((own, own_dof))
            continue
        a, b = own_dof * own, prior * np.median(others)
        assert found[j] == pytest.approx(max(own, (a + b) / (own_dof + prior)))
        assert found_dof[j] == pytest.approx((a + b) ** 2 / (a**2 / own_dof + b**2 / prior))
    assert (found >= variances * (1 - 1e-12)).all()
    again, same_dof = moderate(scale * variances, dof)
    assert again == pytest.approx(scale * found)
    assert same_dof == pytest.approx(found_dof)


def test_comparisons_without_a_variance_lend_nothing():
    variances, dof = np.array([1.0, np.nan, 4.0]), np.array([2.0, 0.0, 2.0])
    found, found_dof = moderate(variances, dof)
    expected, expected_dof = moderate(variances[[0, 2]], dof[[0, 2]])
    assert found[[0, 2]] == pytest.approx(expected)
    assert found_dof[[0, 2]] == pytest.approx(expected_dof)
    assert np.isnan(found[1])


def test_a_page_with_four_metrics_gives_false_verdicts_at_the_stated_level():
    """Only the primary metric is tested: four independent metrics give no more false verdicts than one."""
    rng, num, false = np.random.default_rng(6), 400, 0
    planned = [("arm0", f"arm{k}") for k in range(1, 4)]
    for _ in range(num):
        metrics = rng.normal(size=(4, 4, 3))
        tables = [{f"arm{k}": dict(enumerate(map(float, row))) for k, row in enumerate(metric)} for metric in metrics]
        findings = [
            comparison.finding
            for index, table in enumerate(tables)
            for comparison in compare(table, planned, is_lower_better=True, is_primary=index == 0).values()
        ]
        false += any(finding in (Finding.BETTER, Finding.WORSE) for finding in findings)
    assert_keeps_the_level(false / num, num)

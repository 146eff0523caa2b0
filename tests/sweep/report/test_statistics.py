"""Verdicts are what they say they are: against slow references, and over thousands of sweeps without a difference."""

from itertools import count, pairwise
from math import isclose, sqrt

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from lit_illada.stats.intervals import LEVEL
from lit_illada.sweep.report.statistics import (
    POWER,
    Finding,
    compare,
    difference,
    paired,
    paired_p,
    power,
    seeds_needed,
    smallest_visible,
)
from lit_illada.sweep.spec import Goal

numbers = st.floats(-50, 50).map(lambda value: round(value, 3))


def sweep_of(rng, num_arms, num_seeds, shift=0.0):
    """Arms share the noise of their seed, and have some of their own; the last arm is truly `shift` away."""
    of_seed = rng.normal(0, 1.0, num_seeds)
    table = {f"arm{k}": of_seed + rng.normal(0, 0.1, num_seeds) for k in range(num_arms)}
    table[f"arm{num_arms - 1}"] = table[f"arm{num_arms - 1}"] + shift
    return {arm: dict(enumerate(map(float, column))) for arm, column in table.items()}


def against(table, baseline, goal, num_planned):
    """Every arm against the baseline; of the planned comparisons that are more, nothing is there yet."""
    pairs = [(baseline, arm) for arm in table if arm != baseline]
    planned = [*pairs, *((baseline, f"to come {n}") for n in range(num_planned - len(pairs)))]
    found = compare(table, planned, goal)
    return {arm: found[baseline, arm] for _, arm in pairs}


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=9))
def test_the_p_value_is_that_of_scipys_paired_test(rows):
    pairs = dict(enumerate(rows))
    differences = [a - b for a, b in rows]
    p = paired_p(pairs)
    if p is None:
        assert max(differences) - min(differences) < 1e-6
    else:
        assert isclose(p, stats.ttest_rel(*zip(*rows, strict=True)).pvalue, rel_tol=1e-6, abs_tol=1e-12)


@pytest.mark.parametrize("has_pairs", [False, True])
@pytest.mark.parametrize(("num_arms", "num_seeds"), [(2, 3), (6, 2), (6, 3), (9, 5)])
def test_sweeps_without_a_difference_give_false_verdicts_no_more_often_than_stated(num_arms, num_seeds, has_pairs):
    rng = np.random.default_rng([num_arms, num_seeds])
    false = 0
    planned = [("arm0", f"arm{k}") for k in range(1, num_arms)]
    if has_pairs:
        planned += [(f"arm{k}", f"arm{k + 1}") for k in range(1, num_arms - 1)]
    for _ in range(2000):
        found = compare(sweep_of(rng, num_arms, num_seeds), planned, Goal.LOWER)
        false += any(c.finding in (Finding.BETTER, Finding.WORSE) for c in found.values())
    # five standard errors of 2 000 draws above the level
    assert false / 2000 <= LEVEL + 5 * sqrt(LEVEL * (1 - LEVEL) / 2000)
    if num_arms == 2:
        assert false / 2000 >= LEVEL - 5 * sqrt(LEVEL * (1 - LEVEL) / 2000)


def test_looking_before_every_arm_is_there_makes_no_verdict_easier():
    table = sweep_of(np.random.default_rng(0), 2, 3, shift=0.4)
    alone = against(table, "arm0", Goal.LOWER, 1)["arm1"]
    planned = against(table, "arm0", Goal.LOWER, 8)["arm1"]
    assert planned.p == alone.p
    assert planned.p_holm == pytest.approx(8 * alone.p_holm)


def test_the_power_is_what_simulated_sweeps_show():
    rng = np.random.default_rng(1)
    num_seeds, true = 4, 0.35
    hits = sum(
        against(sweep_of(rng, 4, num_seeds, true), "arm0", Goal.LOWER, 3)["arm3"].p <= LEVEL / 3 for _ in range(3000)
    )
    expected = power(true, 0.1 * sqrt(2), num_seeds, LEVEL / 3)
    assert 0.3 < expected < 0.9
    assert abs(hits / 3000 - expected) < 5 * sqrt(expected * (1 - expected) / 3000)


@pytest.mark.parametrize("level", [0.05, 0.05 / 16])
@pytest.mark.parametrize("effect", [0.08, 0.5, 1.0, 3.0, 100.0])
def test_the_seeds_needed_are_the_fewest_that_reach_the_power(effect, level):
    n = seeds_needed(effect, 1.0, level)
    assert power(effect, 1.0, n, level) >= POWER
    assert n == 2 or power(effect, 1.0, n - 1, level) < POWER


@given(st.floats(0.3, 6), st.sampled_from([0.05, 0.05 / 3, 0.05 / 7, 0.05 / 17, 0.05 / 60]))
@example(0.11458 / 0.0729, 0.05 / 17)
def test_the_seeds_needed_are_what_counting_upwards_finds(ratio, level):
    fewest = next(n for n in count(2) if power(ratio, 1.0, n, level) >= POWER)
    assert seeds_needed(-ratio, 1.0, level) == fewest


@pytest.mark.parametrize("level", [0.05, 0.05 / 17])
@pytest.mark.parametrize("ratio", [0.3, 1.57, 6, 100])
def test_the_power_is_a_chance_that_grows_with_the_seeds(ratio, level):
    chances = [power(ratio, 1.0, n, level) for n in [*range(2, 800), 5000, 10_000]]
    assert all(before <= after + 1e-9 for before, after in pairwise(chances))
    assert 0 <= chances[0] <= chances[-1] <= 1


def test_the_power_far_out_is_what_draws_of_t_show():
    rng, centre, critical = np.random.default_rng(2), 400.0, 637.0  # of one degree of freedom, at 0.001
    t = (rng.normal(size=200_000) + centre) / np.abs(rng.normal(size=200_000))
    assert power(centre / sqrt(2), 1.0, 2, 0.001) == pytest.approx((t > critical).mean(), abs=0.01)


def test_an_effect_too_small_for_any_sweep_says_so():
    assert seeds_needed(1e-6, 1.0, 0.05) is None
    assert seeds_needed(0.0, 1.0, 0.05) is None


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_smallest_visible_difference_is_seen_with_just_the_stated_power(n):
    visible = smallest_visible(0.3, n, 0.01)
    assert power(visible, 0.3, n, 0.01) == pytest.approx(POWER, abs=1e-3)


def test_better_follows_the_goal():
    table = {"base": {0: 1.0, 1: 2.0, 2: 3.0}, "arm": {0: 0.5, 1: 1.51, 2: 2.49}}
    assert against(table, "base", Goal.LOWER, 1)["arm"].finding is Finding.BETTER
    assert against(table, "base", Goal.HIGHER, 1)["arm"].finding is Finding.WORSE


def test_other_pairs_are_compared_too_and_count_among_the_comparisons():
    rng = np.random.default_rng(3)
    table = sweep_of(rng, 3, 4, shift=0.3)
    pairs = [("arm0", "arm1"), ("arm0", "arm2"), ("arm1", "arm2")]
    found = compare(table, pairs, Goal.LOWER)
    differences = [table["arm2"][seed] - table["arm1"][seed] for seed in range(4)]
    last = found["arm1", "arm2"]
    assert last.difference.mean == pytest.approx(np.mean(differences))
    assert last.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert {comparison.level for comparison in found.values()} == {LEVEL / 3}
    assert min(comparison.p_holm for comparison in found.values()) == pytest.approx(
        3 * min(comparison.p for comparison in found.values())
    )


def test_only_seeds_that_both_have_are_compared():
    table = {"base": {0: 1.0, 1: 2.0, 3: float("nan")}, "arm": {1: 5.0, 2: 9.0, 3: 1.0}}
    found = against(table, "base", Goal.LOWER, 1)["arm"]
    assert (found.seeds, found.finding, found.p, found.difference.mean) == ((1,), Finding.UNPAIRED, None, 3.0)
    assert found.difference.low is None


def test_an_arm_without_results_or_a_baseline_without_any_gives_no_verdict():
    assert against({"base": {0: 1.0}, "arm": {}}, "base", Goal.LOWER, 1)["arm"].difference is None
    assert against({"arm": {0: 1.0}}, "base", Goal.LOWER, 1)["arm"].finding is Finding.UNPAIRED


@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_differences_that_do_not_vary_are_no_evidence_about_noise(shift):
    base = {seed: 0.1 * seed + 1 / 3 for seed in range(3)}
    found = against({"base": base, "arm": {s: v + shift for s, v in base.items()}}, "base", Goal.LOWER, 1)["arm"]
    assert (found.finding, found.p) == (Finding.CONSTANT, None)
    assert found.difference.mean == pytest.approx(shift)


def test_pairs_take_the_seeds_in_order():
    assert list(paired({2: 1.0, 0: 2.0}, {0: 0.0, 2: 0.0})) == [0, 2]
    assert difference({}) is None

"""Comparisons of arms over seeds: pairing, moderation, correction, equivalence."""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq

from lit_illada.stats.comparisons import Finding, compare, difference, paired

numbers = st.floats(-50, 50).map(lambda value: round(value, 3))


def by_seed(columns):
    return {arm: dict(enumerate(map(float, column))) for arm, column in columns.items()}


def against(table, baseline="base", *, num_planned=None, is_lower_better=True, is_primary=True):
    """Every arm against the baseline; further planned comparisons have no results yet."""
    pairs = [(baseline, arm) for arm in table if arm != baseline]
    planned = [*pairs, *((baseline, f"to come {n}") for n in range((num_planned or len(pairs)) - len(pairs)))]
    found = compare(table, planned, is_lower_better=is_lower_better, is_primary=is_primary)
    return {arm: found[baseline, arm] for _, arm in pairs}


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=9))
def test_a_single_comparison_is_scipys_paired_t_test(rows):
    arm, base = zip(*rows, strict=True)
    found = against(by_seed({"base": base, "arm": arm}))["arm"]
    differences = [a - b for a, b in rows]
    if found.p is None:
        assert max(differences) - min(differences) < 1e-6
    else:
        assert found.p == pytest.approx(stats.ttest_rel(arm, base).pvalue, rel=1e-6, abs=1e-12)
        low, high = stats.t.interval(0.95, len(rows) - 1, np.mean(differences), stats.sem(differences))
        assert (found.difference.low, found.difference.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)


def test_an_arm_with_a_luckily_small_variance_borrows_from_the_others():
    noise = np.random.default_rng(0).normal(0, 0.1, (4, 3))
    columns = {"base": np.zeros(3), **{f"arm{k}": noise[k] for k in range(4)}, "lucky": [0.05, 0.0501, 0.0499]}
    alone = against(by_seed({"base": columns["base"], "lucky": columns["lucky"]}))["lucky"]
    among = against(by_seed(columns))["lucky"]
    assert alone.finding is Finding.WORSE
    assert among.finding is Finding.NOT_SEPARABLE
    assert among.standard_error > 20 * alone.standard_error


def test_a_control_neither_lends_nor_borrows_variance():
    rng = np.random.default_rng(1)
    columns = {name: rng.normal(0, scale, 3) for name, scale in {"base": 1, "a": 1, "b": 1, "control": 50}.items()}
    table = by_seed(columns)
    planned = [("base", arm) for arm in ("a", "b", "control")]
    found = compare(table, planned, is_lower_better=True, controls=["control"])
    without = compare(table, planned[:2], is_lower_better=True)
    assert [found[pair].standard_error for pair in planned[:2]] == [
        without[pair].standard_error for pair in planned[:2]
    ]
    assert found["base", "control"].p == pytest.approx(stats.ttest_rel(columns["control"], columns["base"]).pvalue)


def test_missing_arms_make_no_verdict_easier():
    rng = np.random.default_rng(0)
    table = by_seed({"base": rng.normal(size=3), "arm": rng.normal(size=3)})
    alone, planned = against(table)["arm"], against(table, num_planned=8)["arm"]
    assert planned.p == alone.p
    assert planned.p_holm == pytest.approx(min(1, 8 * alone.p_holm))


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=4, max_size=6), st.integers(1, 3))
def test_comparisons_tested_first_are_corrected_alone_and_bound_the_others(columns, num_first):
    table = by_seed({"base": [0.0, 0.0, 0.0], **{str(index): column for index, column in enumerate(columns)}})
    planned = [("base", str(index)) for index in range(len(columns))]
    first, others = planned[:num_first], planned[num_first:]
    found = compare(table, planned, is_lower_better=True, tested_first=first)
    alone = [compare(table, family, is_lower_better=True) for family in (first, others)]
    p = {names: comparison.p for family in alone for names, comparison in family.items()}

    def corrected(family, names):
        """Holm: the largest of the products up to this rank."""
        ranked = sorted((other for other in family if p[other] is not None), key=lambda other: p[other])
        products = [(len(family) - rank) * p[other] for rank, other in enumerate(ranked)]
        return min(1.0, max(products[: ranked.index(names) + 1]))

    gate = max(1.0 if p[names] is None else corrected(first, names) for names in first)
    for names, comparison in found.items():
        assert comparison.p == p[names]
        family = first if names in first else others
        assert comparison.num_comparisons == len(family)
        if p[names] is not None:
            bound = 0.0 if names in first else gate
            assert comparison.p_holm == pytest.approx(max(corrected(family, names), bound))
            undecided = Finding.NOT_SEPARABLE if names in first or gate <= 0.05 else Finding.NOT_TESTED
            assert (comparison.finding is undecided) == (comparison.p_holm > 0.05)
            assert (comparison.smallest_visible is None) == (comparison.finding is Finding.NOT_TESTED)


@pytest.mark.parametrize(
    ("shifts", "sd_of_first", "num_seeds"),
    [
        ((0, 0, 0, 0), 1, 4),
        ((0, 3, 3, 3), 1, 4),
        ((3, 0, 0, 0), 1, 4),
        ((3, 3, 0, 0), 1, 4),
        ((0, 0, 0, 0), 4, 3),
        ((0, 0, 0, 0), 3, 5),
    ],
)
def test_testing_one_comparison_first_keeps_the_chance_of_any_false_verdict(shifts, sd_of_first, num_seeds):
    rng, num_sweeps, false_verdicts = np.random.default_rng(0), 1500, 0
    arms = [str(index) for index in range(len(shifts))]
    for values in rng.normal(size=(num_sweeps, len(shifts) + 1, num_seeds)):
        values[1] *= sd_of_first
        table = by_seed({"base": values[0], **{arm: values[i + 1] + shifts[i] for i, arm in enumerate(arms)}})
        planned = [("base", arm) for arm in arms]
        found = compare(table, planned, is_lower_better=True, tested_first=planned[:1])
        false_verdicts += any(
            found["base", arm].finding in (Finding.BETTER, Finding.WORSE)
            for arm, shift in zip(arms, shifts, strict=True)
            if not shift
        )
    assert false_verdicts <= stats.binom.isf(1e-4, num_sweeps, 0.05), "more than chance explains at a level of 5 %"


def test_a_missing_comparison_of_the_first_leaves_the_others_untested():
    table = by_seed({"base": [0.0, 0.0, 0.0], "arm": [1.0, 1.01, 0.99]})
    planned = [("base", "arm"), ("base", "to come")]
    others = compare(table, planned, is_lower_better=True, tested_first=planned[1:])
    assert others["base", "arm"].finding is Finding.NOT_TESTED
    first = compare(table, planned, is_lower_better=True, tested_first=planned[:1])
    assert first["base", "arm"].finding is Finding.WORSE


def test_better_follows_the_goal():
    table = by_seed({"base": [1.0, 2.0, 3.0], "arm": [0.5, 1.51, 2.49]})
    assert against(table)["arm"].finding is Finding.BETTER
    assert against(table, is_lower_better=False)["arm"].finding is Finding.WORSE


def test_a_descriptive_metric_has_intervals_and_neither_p_values_nor_verdicts():
    table = by_seed({"base": [1.0, 2.0, 3.0], "arm": [0.5, 1.51, 2.49]})
    found, primary = against(table, is_primary=False)["arm"], against(table)["arm"]
    assert (found.finding, found.p, found.p_holm, found.seeds_needed) == (Finding.DESCRIPTIVE, None, None, None)
    assert found.difference == primary.difference


def test_only_seeds_that_both_have_are_compared():
    table = {"base": {0: 1.0, 1: 2.0, 3: float("nan")}, "arm": {1: 5.0, 2: 9.0, 3: 1.0}}
    found = against(table)["arm"]
    assert (found.seeds, found.finding, found.p, found.difference.mean) == ((1,), Finding.UNPAIRED, None, 3.0)
    assert found.difference.low is None


def test_an_arm_without_results_or_a_baseline_without_any_gives_no_verdict():
    assert against({"base": {0: 1.0}, "arm": {}})["arm"].difference is None
    assert against({"base": {}, "arm": {0: 1.0}})["arm"].finding is Finding.UNPAIRED


@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_differences_that_do_not_vary_are_not_tested_and_lend_no_variance(shift):
    base = [1 / 3 + 0.1 * seed for seed in range(3)]
    noisy = [0.4, 0.2, 0.9]
    table = by_seed({"base": base, "arm": [value + shift for value in base], "noisy": noisy})
    found = against(table)
    assert (found["arm"].finding, found["arm"].p) == (Finding.CONSTANT, None)
    assert found["arm"].difference.mean == pytest.approx(shift)
    assert found["noisy"].p == against(by_seed({"base": base, "noisy": noisy}))["noisy"].p


def test_pairs_take_the_seeds_in_order():
    assert list(paired({2: 1.0, 0: 2.0}, {0: 0.0, 2: 0.0})) == [0, 2]
    assert difference({}) is None


@given(st.lists(numbers, min_size=3, max_size=9, unique=True), st.floats(0.1, 20))
def test_equivalence_is_two_one_sided_t_tests(differences, margin):
    found = against(by_seed({"base": [0.0] * len(differences), "arm": differences}))["arm"]
    one = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    other = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    assert found.p_equivalent(margin) == pytest.approx(max(one, other), rel=1e-6, abs=1e-12)


def test_equivalence_is_claimed_falsely_at_its_level():
    """Arms that truly differ by just the margin: the hardest case."""
    rng, margin, false = np.random.default_rng(4), 0.5, 0
    for _ in range(1000):
        found = against(by_seed({"base": [0.0] * 4, "arm": rng.normal(margin, 0.15, 4)}))["arm"]
        false += found.p_equivalent(margin) <= 0.05
    assert abs(false / 1000 - 0.05) < 4 * sqrt(0.05 * 0.95 / 1000)


def test_the_range_of_seeds_needed_is_that_of_the_ends_of_the_interval_of_the_effect():
    arm, n = [0.8, 1.0, 1.3], 3
    t = stats.ttest_1samp(arm, 0).statistic

    def effect_with(tail):
        """The true effect in standard deviations for which this fraction of the statistics lies above the observed."""
        return brentq(lambda shift: stats.nct.sf(t, n - 1, shift) - tail, 1e-6, 100) / sqrt(n)

    def num_seeds_for(effect):
        """The fewest with which a t test finds the effect, in its direction, with a power of 80 %."""
        return next(
            n for n in range(2, 1000) if stats.nct.sf(stats.t.isf(0.025, n - 1), n - 1, effect * sqrt(n)) >= 0.8
        )

    shown = against(by_seed({"base": [0.0] * n, "arm": arm}))["arm"]
    assert shown.seeds_needed == (num_seeds_for(effect_with(0.975)), num_seeds_for(effect_with(0.025)))


def test_the_range_of_seeds_needed_is_left_out_where_the_interval_holds_0():
    hidden = against(by_seed({"base": [0.0] * 3, "arm": [-0.4, 1.0, 1.3]}))["arm"]
    assert hidden.difference.low < 0 < hidden.difference.high
    assert hidden.seeds_needed is None

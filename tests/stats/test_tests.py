"""Tests of paired observations equal scipy's, and Holm's correction the step-by-step procedure."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from lit_illada.stats.tests import Paired, holm, mcnemar, paired_interval


def test_mcnemar_counts_the_four_cells():
    paired = mcnemar([(True, False)] * 9 + [(False, True)] + [(True, True)] * 50 + [(False, False)] * 5)
    assert (paired.both, paired.only_first, paired.only_second, paired.neither) == (50, 9, 1, 5)
    assert paired.p_value == pytest.approx(2 * 11 / 2**10)
    assert mcnemar([(True, True)]).p_value == 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemars_p_value_equals_the_binomial_tests(first, second):
    exact = binomtest(first, first + second, 0.5).pvalue if first + second else 1
    assert Paired(3, first, second, 4).p_value == pytest.approx(exact, abs=1e-12)


@given(st.tuples(*[st.integers(0, 30)] * 4))
def test_the_paired_interval_is_that_of_the_mean_difference_after_adding_a_discordant_pair_each_way(cells):
    both, only_first, only_second, neither = cells
    differences = [0] * (both + neither) + [-1] * (only_first + 1) + [1] * (only_second + 1)
    half = norm.ppf(0.975) * np.std(differences) / np.sqrt(len(differences))
    want = np.clip([np.mean(differences) - half, np.mean(differences) + half], -1, 1)
    assert paired_interval(Paired(*cells)) == pytest.approx(want, abs=1e-12)


def test_a_paired_interval_ends_at_1():
    # the pair and the two added ones differ by 1, 1 and −1: mean 1/3, variance of the mean (1 − 1/9) / 3
    assert paired_interval(Paired(0, 0, 1, 0)) == pytest.approx((1 / 3 - 1.959964 * (8 / 27) ** 0.5, 1), abs=1e-6)
    assert paired_interval(Paired(0, 1, 0, 0)) == pytest.approx((-1, 1.959964 * (8 / 27) ** 0.5 - 1 / 3), abs=1e-6)


def rejected(p, family, level):
    """Holm's procedure: the smallest p against level / family, the next against level / (family − 1), up to a failure.

    Written as products, so that the adjusted values are hit exactly.
    """
    names = set()
    for rank, (name, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        if value * (family - rank) > level:
            break
        names.add(name)
    return names


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=6), st.integers(0, 3))
def test_holms_value_is_the_lowest_level_at_which_the_step_by_step_procedure_rejects(values, num_missing):
    p = dict(enumerate(values))
    family = len(p) + num_missing
    levels = [value * count for value in values for count in range(1, family + 1)]
    for name, adjusted in holm(p, family).items():
        assert adjusted == min([1, *(level for level in levels if name in rejected(p, family, level))])


def test_holms_values_of_a_family_with_results_missing():
    assert holm({"a": 0.01, "b": 0.03, "c": 0.005}, 3) == pytest.approx({"c": 0.015, "a": 0.02, "b": 0.03})
    assert holm({"a": 0.01, "b": 0.03, "c": 0.005}, 5) == pytest.approx({"c": 0.025, "a": 0.04, "b": 0.09})

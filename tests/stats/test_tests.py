"""Tests of paired observations equal scipy's, and Holm's correction the step-by-step procedure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lit_illada.stats.intervals import LEVEL
from lit_illada.stats.tests import Paired, holm, mcnemar


def test_mcnemar_counts_the_four_cells():
    paired = mcnemar([(True, False)] * 9 + [(False, True)] + [(True, True)] * 50 + [(False, False)] * 5)
    assert (paired.both, paired.only_first, paired.only_second, paired.neither) == (50, 9, 1, 5)
    assert paired.p_value == pytest.approx(2 * 11 / 2**10)
    assert mcnemar([(True, True)]).p_value == 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemars_p_value_equals_the_binomial_tests(first, second):
    exact = binomtest(first, first + second, 0.5).pvalue if first + second else 1
    assert Paired(3, first, second, 4).p_value == pytest.approx(exact, abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(0, 3))
def test_holm_rejects_what_the_step_by_step_procedure_rejects(p, num_missing):
    named = {str(index): value for index, value in enumerate(p)}
    family = len(p) + num_missing
    rejected = set()
    for rank, (name, value) in enumerate(sorted(named.items(), key=lambda item: item[1])):
        if value * (family - rank) > LEVEL:
            break
        rejected.add(name)
    assert {name for name, value in holm(named, family).items() if value <= LEVEL} == rejected

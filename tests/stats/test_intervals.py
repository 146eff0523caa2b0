"""Intervals equal scipy's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lit_illada.stats.intervals import Rate, estimate, wilson

numbers = st.floats(-50, 50).map(lambda value: round(value, 3))


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_equals_scipys(hits_and_tries):
    interval = stats.binomtest(*hits_and_tries).proportion_ci(method="wilson")
    assert wilson(*hits_and_tries) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_no_tries_give_the_whole_interval():
    assert wilson(0, 0) == (0, 1)


def test_a_rate_is_written_with_its_interval():
    assert str(Rate(97, 256)) == "37.9% (32.2–44.0)"
    assert str(Rate(0, 0)) == "–"


@given(st.lists(numbers, min_size=2, max_size=9, unique=True))
def test_the_interval_of_a_mean_is_students(values):
    found = estimate(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high), abs=1e-9)

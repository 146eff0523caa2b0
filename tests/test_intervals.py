"""Intervals of proportions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lit_illada.intervals import wilson


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_is_scipys(hits_and_tries):
    interval = binomtest(*hits_and_tries).proportion_ci(method="wilson")
    assert wilson(*hits_and_tries) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_nothing_tried_says_nothing():
    assert wilson(0, 0) == (0, 1)

"""Intervals and agreement."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lit_illada.scoring.agreement import agreement, wilson


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_is_scipys(hits_and_tries):
    interval = binomtest(*hits_and_tries).proportion_ci(method="wilson")
    assert wilson(*hits_and_tries) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_nothing_tried_says_nothing():
    assert wilson(0, 0) == (0, 1)


def test_agreement_counts_items_with_the_same_choice():
    table = agreement({"a": [0, 1, 2, 3], "b": [0, 1, 0, 0], "c": [1, 1, 2, 3]})
    assert table == {
        "a": {"a": 1.0, "b": 0.5, "c": 0.75},
        "b": {"a": 0.5, "b": 1.0, "c": 0.25},
        "c": {"a": 0.75, "b": 0.25, "c": 1.0},
    }

"""Intervals, paired tests and survival, against references."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import CensoredData, binomtest, ecdf

from lit_illada.loops.statistics import Paired, Rate, kaplan_meier, mcnemar


@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=40))
def test_kaplan_and_meiers_curve_is_scipys(drawn):
    times, is_event = zip(*drawn, strict=True)
    found = kaplan_meier(times, is_event)
    if not any(is_event):
        assert found.survival[-1] == 1
        return
    events = [time for time, happened in drawn if happened]
    censored = [time for time, happened in drawn if not happened]
    slow = ecdf(CensoredData(uncensored=events, right=censored)).sf
    for time, survival in zip(found.times, found.survival, strict=True):
        assert survival == pytest.approx(float(slow.evaluate(time)), abs=1e-12)
    assert all(low <= s <= high for low, s, high in zip(found.low, found.survival, found.high, strict=True))
    assert found.times[-1] == max(times)


def test_mcnemar_looks_at_the_prompts_that_differ():
    paired = mcnemar([(True, False)] * 9 + [(False, True)] + [(True, True)] * 50 + [(False, False)] * 5)
    assert (paired.both, paired.only_first, paired.only_second, paired.neither) == (50, 9, 1, 5)
    assert paired.p_value == pytest.approx(2 * 11 / 2**10)
    assert mcnemar([(True, True)]).p_value == 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemars_p_is_the_binomial_tests(first, second):
    exact = binomtest(first, first + second, 0.5).pvalue if first + second else 1
    assert Paired(3, first, second, 4).p_value == pytest.approx(exact)


def test_a_rate_is_told_with_its_interval():
    assert str(Rate(97, 256)) == "37.9% (32.2–44.0)"
    assert str(Rate(0, 0)) == "–"

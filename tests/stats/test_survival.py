"""The Kaplan–Meier curve equals scipy's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import CensoredData, ecdf

from lit_illada.stats.survival import kaplan_meier


@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=40))
def test_the_kaplan_meier_curve_equals_scipys(drawn):
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

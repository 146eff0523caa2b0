"""The Kaplan–Meier curve equals scipy's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import CensoredData, ecdf

from lit_illada.stats.survival import kaplan_meier


@pytest.mark.filterwarnings("ignore:The confidence interval is undefined")  # scipy's, where the curve is 0 or 1
@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=40))
def test_the_kaplan_meier_curve_and_its_interval_equal_scipys(drawn):
    times, is_event = zip(*drawn, strict=True)
    found = kaplan_meier(times, is_event)
    assert found.at_risk == [sum(end >= time for end in times) for time in found.times]
    assert found.times[-1] == max(times)
    if not any(is_event):
        assert found.survival[-1] == found.low[-1] == found.high[-1] == 1
        return
    events = [time for time, happened in drawn if happened]
    censored = [time for time, happened in drawn if not happened]
    slow = ecdf(CensoredData(uncensored=events, right=censored)).sf
    band = slow.confidence_interval(0.95, method="log-log")
    for time, survival, low, high in zip(found.times, found.survival, found.low, found.high, strict=True):
        assert survival == pytest.approx(float(slow.evaluate(time)), abs=1e-12)
        at = [float(end.evaluate(time)) for end in (band.low, band.high)] if 0 < survival < 1 else [survival] * 2
        assert [low, high] == pytest.approx(at, abs=1e-9)

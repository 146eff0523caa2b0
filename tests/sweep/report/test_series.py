"""Aggregation of the seeds of an arm."""

import numpy as np
import pytest

from lit_illada.sweep.report.collect import collect
from lit_illada.sweep.report.series import courses

TAG = "val/nll_bound"


def curves_of(folder):
    return [record.curves[TAG] for record in collect(folder.path).of_arm("a", "pretrain").values()]


@pytest.fixture
def unequal_sweep(make_sweep, write_curves):
    """Two seeds of one arm, of 30 and 60 steps, as a budget of passes or seconds ends them."""
    folder = make_sweep({"a": {0: 4.0, 1: 5.0}})
    run = folder.runs / "pretrain-a-s0"
    for file in run.glob("events.out.tfevents.*"):
        file.unlink()
    write_curves(run, 4.0, last_step=30)
    assert [curve.steps[-1] for curve in curves_of(folder)] == [30, 60]
    return folder


def test_curves_of_seeds_of_unequal_length_span_the_whole_runs(unequal_sweep):
    band = courses(collect(unequal_sweep.path), TAG, "pretrain")["a"].band
    short, long = curves_of(unequal_sweep)
    assert band.x[-1] == 45  # the mean length
    ends = [short.values[-1], long.values[-1]]
    assert (band.low[-1], band.mean[-1], band.high[-1]) == pytest.approx((min(ends), sum(ends) / 2, max(ends)))
    for x, mean in zip(band.x, band.mean, strict=True):
        own = [np.interp(x / 45, np.divide(each.steps, each.steps[-1]), each.values) for each in (short, long)]
        assert mean == pytest.approx(sum(own) / 2)


def test_curves_of_equal_length_have_the_points_of_their_validations(make_sweep):
    folder = make_sweep({"a": {0: 4.0, 1: 5.0}})
    first, second = curves_of(folder)
    band = courses(collect(folder.path), TAG, "pretrain", factor=100.0)["a"].band
    assert band.x == list(first.steps)
    assert band.mean == pytest.approx([50 * (a + b) for a, b in zip(first.values, second.values, strict=True)])

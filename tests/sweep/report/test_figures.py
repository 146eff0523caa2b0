"""Figures of a metric."""

from dataclasses import replace

import pytest

from lit_illada.report.palette import looks_of
from lit_illada.sweep.report.collect import collect
from lit_illada.sweep.report.figures import metric_figures
from lit_illada.sweep.report.findings import find
from lit_illada.sweep.report.wording import unit_of


def bars(figure):
    """Ends of the interval of each row."""
    return {
        trace["y"][0]: (trace["x"][0] - trace["error_x"]["arrayminus"][0], trace["x"][0] + trace["error_x"]["array"][0])
        for trace in figure.data
        if "error_x" in trace
    }


@pytest.fixture
def figures_of(make_sweep):
    """The figures of a sweep with a metric of this name."""

    def make(metric, values):
        sweep = collect(make_sweep(values).path)
        finding = replace(find(sweep, sweep.spec.metrics[0]), unit=unit_of(metric, []))
        return finding, metric_figures(sweep, finding, looks_of(list(values), next(iter(values))))

    return make


def test_bars_of_percentages_end_at_possible_values(figures_of):
    finding, (by_seed, *_) = figures_of("accuracy", {"a": {0: 0.0, 1: 0.1}, "b": {0: 0.9, 1: 1.0}})
    assert finding.of("a").estimate.low < 0
    assert finding.of("b").estimate.high > 1
    assert bars(by_seed)["a"] == pytest.approx((0.0, 100 * finding.of("a").estimate.high))
    assert bars(by_seed)["b"] == pytest.approx((100 * finding.of("b").estimate.low, 100.0))


def test_bars_of_other_values_are_the_intervals(figures_of):
    finding, (by_seed, *_) = figures_of("val/nll_bound", {"a": {0: 0.0, 1: 0.1}, "b": {0: 0.9, 1: 1.0}})
    for arm in ("a", "b"):
        estimate = finding.of(arm).estimate
        assert bars(by_seed)[arm] == pytest.approx((estimate.low, estimate.high))

"""Figures of a sweep's page: seeds, paired differences, grids, learning curves, loss by mask ratio, gradient norms."""

from collections.abc import Mapping
from typing import Any

from lit_illada.report.palette import Look
from lit_illada.report.plots import PlotFigure, Trace, Variant, slug
from lit_illada.sweep.report.collect import Sweep
from lit_illada.sweep.report.findings import MetricFinding, grid
from lit_illada.sweep.report.series import Band, Course, by_ratio, by_ratio_to_baseline, courses, gradient_norms
from lit_illada.sweep.report.traces import band_traces, course_traces, row_traces
from lit_illada.sweep.report.wording import Unit
from lit_illada.sweep.spec import Goal

_ROW_HEIGHT, _FRAME_HEIGHT, _CURVE_HEIGHT = 34, 96, 420
# curves start at chance; the initial y range covers what follows this fraction of the steps
_START_FRACTION = 0.12

Looks = Mapping[str, Look]


def metric_figures(sweep: Sweep, finding: MetricFinding, looks: Looks) -> list[PlotFigure]:
    """Figures of a metric that have data: seeds, differences from the baseline, grid of two axes."""
    figures = [_seeds(sweep, finding, looks), _differences(sweep, finding, looks), _heat_map(sweep, finding)]
    return [figure for figure in figures if figure is not None]


def course_figure(sweep: Sweep, tag: str, stage: str, unit: Unit, looks: Looks) -> PlotFigure | None:
    """Learning curves over forward passes, tokens, FLOPs or steps; None without curves."""
    of_arm = courses(sweep, tag, stage, unit.factor)
    # an axis is offered only if it is known for every arm
    axes = ["forward passes", "tokens", "FLOPs"] if of_arm else []
    axes = [*(axis for axis in axes if all(axis in course.per_step for course in of_arm.values())), "steps"]
    variants = []
    data: list[Trace] = []
    for axis in axes:
        data = [
            trace
            for arm, course in of_arm.items()
            for trace in course_traces(arm, course, 1.0 if axis == "steps" else course.per_step[axis], looks[arm])
        ]
        x_axis = {"title": {"text": f"training {axis}"}, "rangemode": "tozero", "autorange": True}
        xs, ys = [trace["x"] for trace in data], [trace["y"] for trace in data]
        variants.append(Variant(axis, xs, ys, {"xaxis": x_axis}))
    if not data:
        return None
    data = [{**trace, "x": x, "y": y} for trace, x, y in zip(data, variants[0].x, variants[0].y, strict=True)]
    layout = {
        "height": _CURVE_HEIGHT,
        "xaxis": variants[0].layout["xaxis"],
        "yaxis": {"title": {"text": f"{tag}, {unit.name}" if unit.name else tag}, **_range_after_start(of_arm)},
        "hovermode": "closest",
    }
    caption = (
        "Lines: means over the finished seeds. Bands: range of the seeds; between their validations seeds of unequal "
        "length are interpolated. Dotted lines: unfinished runs. The start of training may lie outside the axis range; "
        "double-click to show it."
    )
    return PlotFigure(f"course-{slug(stage, tag)}", f"Learning curves: {tag}, {stage}", caption, data, layout, variants)


def ratio_figure(sweep: Sweep, stage: str, looks: Looks) -> PlotFigure | None:
    """Cross-entropy by mask ratio, absolute and minus the baseline at the same seed; None without finished runs."""
    absolute, relative = by_ratio(sweep, stage), by_ratio_to_baseline(sweep, stage)
    if not absolute:
        return None
    x = {"title": {"text": "mask ratio t"}, "range": [0, 1], "dtick": 0.2}
    tables = [("cross-entropy", absolute, "nats/masked token")]
    if relative:
        tables.append(("minus baseline", relative, f"nats/masked token, minus {sweep.spec.baseline}"))
    variants: list[Variant] = []
    data: list[Trace] = []
    for label, table, title in tables:
        empty = Band([], [], [], [])
        traces = [trace for arm in absolute for trace in band_traces(arm, table.get(arm, empty), looks[arm])]
        axes = {"xaxis": x, "yaxis": {"title": {"text": title}, "autorange": True}}
        variants.append(Variant(label, [trace["x"] for trace in traces], [trace["y"] for trace in traces], axes))
        data = data or traces
    layout: dict[str, Any] = {"height": _CURVE_HEIGHT, **variants[0].layout}
    caption = (
        "Cross-entropy of masked validation tokens at the end of training by the fraction of masked tokens. Lines: "
        "means over seeds. Bands: range of the seeds."
    )
    return PlotFigure(f"ratio-{slug(stage)}", f"By mask ratio, after {stage}", caption, data, layout, variants)


def gradient_figure(sweep: Sweep, stage: str, looks: Looks) -> PlotFigure | None:
    """Median and spread of the gradient norm by arm; None without data."""
    norms = gradient_norms(sweep, stage)
    if not norms:
        return None
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [spread.median],
            "y": [arm],
            "marker": {"color": looks[arm].colour, "size": 10, "symbol": looks[arm].symbol},
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [spread.high - spread.median],
                "arrayminus": [spread.median - spread.low],
                "color": looks[arm].colour,
            },
            "hovertemplate": f"median %{{x:.3g}}, 5 to 95 %: {spread.low:.3g} to {spread.high:.3g}",
            "name": arm,
            "meta": {"arm": arm},
        }
        for arm, spread in reversed(norms.items())
    ]
    layout = {
        **_rows(list(reversed(norms))),
        "xaxis": {"type": "log", "dtick": "D2", "title": {"text": "gradient norm before clipping"}},
    }
    caption = "Median and central 90 % range over the steps of all seeds, without the first tenth of training."
    return PlotFigure(f"gradients-{slug(stage)}", f"Gradient norm, {stage}", caption, data, layout)


def _seeds(sweep: Sweep, finding: MetricFinding, looks: Looks) -> PlotFigure | None:
    shown = [arm for arm in reversed(finding.arms) if arm.values]
    if not shown:
        return None
    factor, unit = finding.unit.factor, finding.unit
    data: list[Trace] = []
    for arm in shown:
        values = {seed: factor * value for seed, value in arm.values.items()}
        data += row_traces(arm, looks[arm.arm], values, arm.estimate, unit)
    named = finding.metric.name
    layout = {
        **_rows([arm.arm for arm in shown]),
        "xaxis": {"title": {"text": f"{named}, {unit.name}" if unit.name else named}, **_without_outliers(sweep, data)},
    }
    better = "left" if finding.metric.goal is Goal.LOWER else "right"
    caption = (
        f"One dot per seed; {better} is better. Bars: means with 95\u00a0% intervals over seeds, which include the "
        "variation between seeds: compare arms by their paired differences."
    )
    return PlotFigure(f"seeds-{slug(finding.metric.stage, named)}", "Values by seed", caption, data, layout)


def _differences(sweep: Sweep, finding: MetricFinding, looks: Looks) -> PlotFigure | None:
    reference = finding.of(sweep.spec.baseline).values
    shown = [arm for arm in reversed(finding.arms) if arm.comparison is not None and arm.comparison.difference]
    if not shown:
        return None
    factor, unit = finding.unit.factor, finding.unit
    data: list[Trace] = []
    for arm in shown:
        assert arm.comparison is not None
        values = {seed: factor * (arm.values[seed] - reference[seed]) for seed in arm.comparison.seeds}
        data += row_traces(arm, looks[arm.arm], values, arm.comparison.difference, unit, is_difference=True)
    layout = {
        **_rows([arm.arm for arm in shown]),
        "xaxis": {
            "title": {"text": f"minus {sweep.spec.baseline}, {unit.of_difference}".rstrip(", ")},
            "zeroline": True,
            **_without_outliers(sweep, data),
        },
    }
    caption = (
        f"One dot per seed: the arm minus {sweep.spec.baseline} at the same seed. Bars: means with 95\u00a0% "
        "intervals, not corrected for the number of comparisons; verdicts are corrected."
    )
    return PlotFigure(
        f"differences-{slug(finding.metric.stage, finding.metric.name)}", "Paired differences", caption, data, layout
    )


def _heat_map(sweep: Sweep, finding: MetricFinding) -> PlotFigure | None:
    table = grid(sweep.spec, finding)
    if table is None or not any(value is not None for row in table[2] for value in row):
        return None
    rows, columns, means = table
    first, second = sweep.spec.axes
    scaled = [[None if value is None else finding.unit.factor * value for value in row] for row in means]
    data = [
        {
            "type": "heatmap",
            "x": columns,
            "y": rows,
            "z": scaled,
            "text": [[finding.unit.value(value) for value in row] for row in means],
            "texttemplate": "%{text}",
            "hovertemplate": f"{first} %{{y}}<br>{second} %{{x}}<br>%{{text}} {finding.unit.name}<extra></extra>",
            "colorscale": "Viridis",
            "reversescale": finding.metric.goal is Goal.LOWER,
            "xgap": 2,
            "ygap": 2,
        }
    ]
    layout = {
        "height": _FRAME_HEIGHT + 60 + 48 * len(rows),
        "xaxis": {"title": {"text": second}, "type": "category"},
        "yaxis": {"title": {"text": first}, "type": "category", "autorange": "reversed"},
    }
    caption = f"Means over seeds of {finding.metric.name}; brighter is better. The table has their intervals."
    identity = f"grid-{slug(finding.metric.stage, finding.metric.name)}"
    return PlotFigure(identity, f"{first} × {second}", caption, data, layout)


def _rows(arms: list[str]) -> dict[str, Any]:
    return {
        "height": _FRAME_HEIGHT + _ROW_HEIGHT * len(arms),
        "meta": {"row_height": _ROW_HEIGHT},
        "yaxis": {"type": "category", "categoryorder": "array", "categoryarray": arms, "automargin": True},
    }


def _without_outliers(sweep: Sweep, data: list[Trace]) -> dict[str, Any]:
    """Initial x range without the arms that cannot learn, which would compress all others."""
    left_out = set(sweep.spec.cannot_learn)
    ends = [end for trace in data if trace["meta"]["arm"] not in left_out for end in _extent(trace)]
    if not ends or not left_out & {trace["meta"]["arm"] for trace in data}:
        return {}
    margin = 0.06 * (max(ends) - min(ends))
    return {"range": [min(ends) - margin, max(ends) + margin]}


def _extent(trace: Trace) -> list[float]:
    bar = trace.get("error_x", {"array": [0.0], "arrayminus": [0.0]})
    return [end for x in trace["x"] for end in (x - bar["arrayminus"][0], x + bar["array"][0])]


def _range_after_start(of_arm: Mapping[str, Course]) -> dict[str, Any]:
    """Initial y range without the steep start of training."""
    bands = [course.band for course in of_arm.values() if course.band and len(course.band.x) > 3]
    late = [
        value
        for band in bands
        for x, low, high in zip(band.x, band.low, band.high, strict=True)
        if x >= _START_FRACTION * band.x[-1]
        for value in (low, high)
    ]
    if not late or min(late) == max(late):
        return {}
    margin = 0.05 * (max(late) - min(late))
    return {"range": [min(late) - margin, max(late) + margin]}

"""Traces of one arm, of which the figures of a page are made: rows of seeds, learning curves, bands."""

from lit_illada.report.palette import Look
from lit_illada.report.plots import Trace
from lit_illada.stats.intervals import Estimate
from lit_illada.sweep.report.findings import ArmFinding
from lit_illada.sweep.report.series import Band, Course
from lit_illada.sweep.report.wording import Unit


def row_traces(
    arm: ArmFinding,
    look: Look,
    values: dict[int | None, float],
    estimate: Estimate | None,
    unit: Unit,
    *,
    is_difference: bool = False,
) -> list[Trace]:
    """Row of an arm: one dot per seed, and the mean with its interval."""
    name, factor = unit.of_difference if is_difference else unit.name, unit.factor
    dots = {
        "type": "scatter",
        "mode": "markers",
        "x": list(values.values()),
        "y": [arm.arm] * len(values),
        "customdata": [[seed, arm.records[seed].run.id] for seed in values],
        "hovertemplate": f"seed %{{customdata[0]}}: %{{x:.5g}} {name}<br>%{{customdata[1]}}",
        "marker": {"color": look.colour, "size": 9, "opacity": 0.55, "symbol": look.symbol},
        "name": arm.arm,
        "meta": {"arm": arm.arm},
    }
    if estimate is None:
        return [dots]
    mean: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [factor * estimate.mean],
        "y": [arm.arm],
        "marker": {"color": look.colour, "size": 16, "symbol": "line-ns", "line": {"width": 3, "color": look.colour}},
        "hovertemplate": f"mean %{{x:.5g}} {name}",
        "name": arm.arm,
        "meta": {"arm": arm.arm},
    }
    if ends := unit.ends(estimate, is_difference=is_difference):
        low, high = (factor * end for end in ends)
        mean["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": [high - factor * estimate.mean],
            "arrayminus": [factor * estimate.mean - low],
            "color": look.colour,
            "thickness": 1.5,
            "width": 5,
        }
        mean["hovertemplate"] += f"<br>95\u00a0% interval {low:.5g} to {high:.5g}"
    return [dots, mean]


def course_traces(arm: str, course: Course, per_step: float, look: Look) -> list[Trace]:
    """Learning curve of an arm, and one dotted line per unfinished run. per_step: units of the x axis per step."""
    band = course.band or Band([], [], [], [])
    traces = band_traces(arm, Band([per_step * x for x in band.x], band.mean, band.low, band.high), look)
    for steps, values in course.unfinished:
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [per_step * step for step in steps],
                "y": values,
                "line": {"color": look.colour, "width": 1, "dash": "dot"},
                "hovertemplate": "%{y:.4f}, unfinished",
                "name": arm,
                "meta": {"arm": arm},
            }
        )
    return traces


def band_traces(arm: str, band: Band, look: Look) -> list[Trace]:
    """Range of the seeds as an area, and their mean as a line."""
    area = {
        "type": "scatter",
        "mode": "lines",
        "x": [*band.x, *reversed(band.x)],
        "y": [*band.high, *reversed(band.low)],
        "fill": "toself",
        "fillcolor": look.faded(0.16),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "name": arm,
        "meta": {"arm": arm},
    }
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": band.x,
        "y": band.mean,
        "line": {"color": look.colour, "width": 2, "dash": look.dash},
        "marker": {"size": 4, "symbol": look.symbol},
        "hovertemplate": "%{y:.4f} at %{x:.4s}",
        "name": arm,
        "meta": {"arm": arm},
    }
    return [area, line]

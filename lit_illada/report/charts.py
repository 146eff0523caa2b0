"""Histograms and curves as SVG, coloured by the style sheet of the page.

Every chart is as wide as a phone. Colours are the classes s0, s1, … of the style sheet, so they follow light and dark.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

import numpy as np
from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 38
NUM_COLOURS = 8


@dataclass(frozen=True)
class Curve:
    """y over x, with a band around it."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None  # lower edge of the band; None: no band
    high: Sequence[float] | None = None  # upper edge


@dataclass(frozen=True)
class _Frame:
    """Scales of the plot: data to SVG coordinates."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x_low) / ((self.x_high - self.x_low) or 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.y_low) / ((self.y_high - self.y_low) or 1) * (_HEIGHT - _TOP - _BOTTOM)


def histogram(series: Mapping[str, Sequence[float]], x_label: str, *, limits: tuple[float, float] | None = None) -> str:
    """Counts in bins, the series stacked."""
    values = np.array([value for group in series.values() for value in group], float)
    if not len(values):
        return _empty(x_label)
    low, high = limits or (0.0, float(values.max()))
    edges = _edges(low, high, is_whole=limits is None and bool(np.all(values == np.round(values))))
    counts = {name: np.histogram(group, edges)[0] for name, group in series.items()}
    frame = _Frame(edges[0], edges[-1], 0, _ceiling(float(sum(counts.values()).max())))  # type: ignore[union-attr]
    bars, floors = [], np.zeros(len(edges) - 1)
    for index, (name, group) in enumerate(counts.items()):
        for bin_ in np.flatnonzero(group).tolist():
            left, right = frame.x(edges[bin_]), frame.x(edges[bin_ + 1])
            top, bottom = frame.y(floors[bin_] + group[bin_]), frame.y(floors[bin_])
            tooltip = f"{name}: {group[bin_]} at {edges[bin_]:.4g} to {edges[bin_ + 1]:.4g}"
            bars.append(
                f'<rect class="fill s{index % NUM_COLOURS}" x="{left + 0.5:.1f}" y="{top:.1f}" '
                f'width="{max(0.5, right - left - 1):.1f}" height="{bottom - top:.1f}">'
                f"<title>{escape(tooltip)}</title></rect>"
            )
        floors = floors + group
    return _svg(frame, "".join(bars), x_label, "texts")


def curves(
    series: Mapping[str, Curve],
    x_label: str,
    y_label: str,
    *,
    is_stepped: bool = False,
    y_limits: tuple[float, float] | None = None,
    mark_x: float | None = None,
    has_points: bool = False,
) -> str:
    """Lines with bands, as SVG.

    Args:
        series: curves by name. An empty one is not drawn, but uses up its colour.
        x_label: label of the x axis.
        y_label: label of the y axis.
        is_stepped: draw a step function.
        y_limits: of the y axis; None: from the data.
        mark_x: position of a vertical line; None: none.
        has_points: mark the measured points.
    """
    xs = [value for curve in series.values() for value in curve.x]
    if not xs:
        return _empty(x_label)
    ys = [value for curve in series.values() for line in (curve.y, curve.low, curve.high) for value in line or ()]
    y_low, y_high = y_limits or (min(0.0, min(ys)), _ceiling(max(ys)))
    frame = _Frame(min(xs), max(xs), y_low, y_high)
    parts = []
    if mark_x is not None:
        x = frame.x(mark_x)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
    for index, (name, curve) in enumerate(series.items()):
        colour = f"s{index % NUM_COLOURS}"
        if not curve.x:
            continue
        if curve.low is not None and curve.high is not None:
            above = _points(frame, curve.x, curve.high, is_stepped)
            below = _points(frame, curve.x, curve.low, is_stepped)[::-1]
            parts.append(f'<polygon class="band {colour}" points="{" ".join([*above, *below])}"/>')
        points = " ".join(_points(frame, curve.x, curve.y, is_stepped))
        parts.append(f'<polyline class="line {colour}" points="{points}"><title>{escape(name)}</title></polyline>')
        if has_points:
            parts += [_point(frame, colour, name, x, y) for x, y in zip(curve.x, curve.y, strict=True)]
    return _svg(frame, "".join(parts), x_label, y_label)


def _point(frame: _Frame, colour: str, name: str, x: float, y: float) -> str:
    tooltip = escape(f"{name}: {y:.3g} at {x:.4g}")
    centre = f'cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}"'
    return f'<circle class="fill {colour}" {centre} r="3"><title>{tooltip}</title></circle>'


def _points(frame: _Frame, xs: Sequence[float], ys: Sequence[float], is_stepped: bool) -> list[str]:
    points: list[str] = []
    for index, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if is_stepped and index:
            points.append(f"{frame.x(x):.1f},{frame.y(ys[index - 1]):.1f}")
        points.append(f"{frame.x(x):.1f},{frame.y(y):.1f}")
    return points


def _svg(frame: _Frame, drawn: str, x_label: str, y_label: str) -> str:
    grid = []
    for value in _ticks(frame.y_low, frame.y_high, 4):
        y = frame.y(value)
        grid.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        grid.append(f'<text class="tick end" x="{_LEFT - 6}" y="{y + 3.5:.1f}">{value:.4g}</text>')
    for value in _ticks(frame.x_low, frame.x_high, 5):
        x = frame.x(value)
        grid.append(f'<text class="tick mid" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 15}">{value:.4g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    labels = (
        f'<text class="label mid" x="{middle}" y="{_HEIGHT - 6}">{escape(x_label)}</text>'
        f'<text class="label mid" transform="translate(11 {(_HEIGHT - _BOTTOM) / 2 + 6}) rotate(-90)">'
        f"{escape(y_label)}</text>"
    )
    description = escape(f"{y_label} over {x_label}")
    head = f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{description}">'
    return Markup(f"{head}{''.join(grid)}{drawn}{labels}</svg>")


def _empty(x_label: str) -> str:
    return Markup(f'<p class="none">nothing to draw over {escape(x_label)}</p>')


def _edges(low: float, high: float, *, is_whole: bool) -> np.ndarray:
    if is_whole:
        width = max(1, ceil((high - low + 1) / 24))
        return np.arange(floor(low / width) * width, high + width + 1, width, dtype=float)
    return np.linspace(low, high if high > low else low + 1, 21)


def _ceiling(value: float) -> float:
    """The next round number."""
    if value <= 0:
        return 1.0
    unit = 10 ** floor(log10(value))
    return next(step * unit for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * unit >= value)


def _ticks(low: float, high: float, count: int) -> list[float]:
    if high <= low:
        return [low]
    rough = (high - low) / count
    unit = 10 ** floor(log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough)
    first = ceil(low / step - 1e-9)
    return [index * step for index in range(first, floor(high / step + 1e-9) + 1)]

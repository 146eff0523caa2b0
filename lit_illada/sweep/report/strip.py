"""Strip plots for table cells: one dot per seed on a common scale, with the interval of the mean behind them."""

from collections.abc import Sequence

from markupsafe import Markup, escape

from lit_illada.report.palette import Look
from lit_illada.sweep.report.findings import ArmFinding, MetricFinding

_WIDTH, _HEIGHT, _EDGE = 150.0, 20.0, 6.0


def strips(found: MetricFinding, looks: dict[str, Look], left_out: Sequence[str]) -> dict[str, Markup]:
    """One SVG per arm. left_out: arms outside the scale of the others, drawn as an arrow at its end."""
    values = [value for arm in found.arms if arm.arm not in left_out for value in arm.values.values()]
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    return {arm.arm: _strip(arm, found, looks[arm.arm].colour, low, high) for arm in found.arms}


def _strip(arm: ArmFinding, found: MetricFinding, colour: str, low: float, high: float) -> Markup:
    def place(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return _EDGE + (_WIDTH - 2 * _EDGE) * min(1.0, max(0.0, share))

    middle = _HEIGHT / 2
    parts = [f'<line x1="0" x2="{_WIDTH:.0f}" y1="{middle}" y2="{middle}" stroke="currentColor" stroke-opacity=".15"/>']
    if arm.estimate and arm.estimate.low is not None and arm.estimate.high is not None:
        ends = place(arm.estimate.low), place(arm.estimate.high)
        parts.append(
            f'<line x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{middle}" y2="{middle}" stroke="{colour}" '
            'stroke-width="5" stroke-opacity=".28" stroke-linecap="round"/>'
        )
    for seed, value in arm.values.items():
        title = escape(f"seed {'of all' if seed is None else seed}: {found.unit.value(value)}")
        if low <= value <= high:
            shape = f'<circle cx="{place(value):.1f}" cy="{middle}" r="4"'
        else:
            point, back = (_WIDTH, _WIDTH - 7) if value > high else (0.0, 7.0)
            shape = f'<path d="M{back} {middle - 4}L{point} {middle}L{back} {middle + 4}Z"'
        parts.append(f'{shape} fill="{colour}" fill-opacity=".75"><title>{title}</title></{shape[1:].split()[0]}>')
    said = ", ".join(found.unit.value(value) for value in arm.values.values()) or "no seed has finished"
    head = f'<svg class="strip" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{escape(said)}">'
    return Markup(head + "".join(parts) + "</svg>")

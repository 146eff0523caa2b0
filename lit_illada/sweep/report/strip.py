"""Strip plots for table cells: one dot per seed on a common scale, over the interval of the mean."""

from collections.abc import Sequence

from markupsafe import Markup, escape

from lit_illada.report.palette import Look
from lit_illada.sweep.report.findings import ArmFinding, MetricFinding

_WIDTH, _HEIGHT, _EDGE = 150.0, 20.0, 6.0


def strips(finding: MetricFinding, looks: dict[str, Look], left_out: Sequence[str]) -> dict[str, Markup]:
    """One SVG per arm.

    left_out: arms that do not affect the scale; their values beyond its ends are drawn as arrows.
    """
    values = [value for arm in finding.arms if arm.arm not in left_out for value in arm.values.values()]
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    return {arm.arm: _strip(arm, finding, looks[arm.arm].colour, low, high) for arm in finding.arms}


def _strip(arm: ArmFinding, finding: MetricFinding, colour: str, low: float, high: float) -> Markup:
    def position(value: float) -> float:
        fraction = (value - low) / (high - low) if high > low else 0.5
        return _EDGE + (_WIDTH - 2 * _EDGE) * min(1.0, max(0.0, fraction))

    middle = _HEIGHT / 2
    parts = [f'<line x1="0" x2="{_WIDTH:.0f}" y1="{middle}" y2="{middle}" stroke="currentColor" stroke-opacity=".15"/>']
    if arm.estimate and arm.estimate.low is not None and arm.estimate.high is not None:
        ends = position(arm.estimate.low), position(arm.estimate.high)
        parts.append(
            f'<line x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{middle}" y2="{middle}" stroke="{colour}" '
            'stroke-width="5" stroke-opacity=".28" stroke-linecap="round"/>'
        )
    for seed, value in arm.values.items():
        title = escape(f"{'all seeds' if seed is None else f'seed {seed}'}: {finding.unit.value(value)}")
        if low <= value <= high:
            shape = f'<circle cx="{position(value):.1f}" cy="{middle}" r="4"'
        else:
            point, back = (_WIDTH, _WIDTH - 7) if value > high else (0.0, 7.0)
            shape = f'<path d="M{back} {middle - 4}L{point} {middle}L{back} {middle + 4}Z"'
        parts.append(f'{shape} fill="{colour}" fill-opacity=".75"><title>{title}</title></{shape[1:].split()[0]}>')
    label = ", ".join(finding.unit.value(value) for value in arm.values.values()) or "no finished seed"
    head = f'<svg class="strip" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(parts) + "</svg>")

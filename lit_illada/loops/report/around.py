"""Entropy and confidence around the onset of a loop: averages over texts, aligned at the onset."""

from collections.abc import Sequence

import numpy as np

from lit_illada.loops.outcome import Outcome
from lit_illada.loops.report.charts import Curve

REACH = 64  # tokens before and behind the onset


def around_onset(outcomes: Sequence[Outcome], name: str) -> dict[str, Curve]:
    """Median and quartiles of a trace's list `name` at each distance from the onset, of looping texts; beside it the
    same of texts that do not loop, around a place as far along."""
    looped = [(item, item.traced.main.onset) for item in outcomes if item.is_loop and item.traced and item.traced.main]
    calm = [item for item in outcomes if not item.kinds and item.traced is not None]
    if not looped:
        return {}
    fractions = [onset / max(1, item.traced.length) for item, onset in looped if item.traced is not None]
    middle = float(np.median(fractions))
    others = [(item, int(middle * item.traced.length)) for item in calm if item.traced is not None]
    found = {"looping": _curve(looped, name), "not looping": _curve(others, name)}
    return {label: curve for label, curve in found.items() if curve is not None}


def _curve(items: Sequence[tuple[Outcome, int]], name: str) -> Curve | None:
    rows = []
    for item, centre in items:
        values = getattr(item.generation, name)
        if values is None or item.traced is None:
            continue
        row = np.full(2 * REACH + 1, np.nan)
        low, high = max(0, centre - REACH), min(item.traced.length, centre + REACH + 1)
        row[low - centre + REACH : high - centre + REACH] = values[low:high]
        rows.append(row)
    if not rows:
        return None
    table = np.array(rows)
    is_known = (~np.isnan(table)).any(0)
    low, middle, high = np.nanquantile(table[:, is_known], [0.25, 0.5, 0.75], axis=0)
    places = np.arange(-REACH, REACH + 1)[is_known]
    return Curve(places.tolist(), middle.tolist(), low.tolist(), high.tolist())

"""Charts of the report page: positions of loops in texts, their course during denoising, and rates by difficulty."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from lit_illada.loops.compare.effects import by_level, natural, number_in, without_number
from lit_illada.loops.compare.summaries import by_group, cell_name, rate_of
from lit_illada.loops.detect.spans import Span
from lit_illada.loops.outcome import Outcome
from lit_illada.report.charts import NUM_COLOURS, Curve, curves, histogram
from lit_illada.stats.survival import kaplan_meier

REACH = 64  # tokens before and after the onset


def loop_charts(outcomes: Sequence[Outcome], keys: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The groups with one colour each, and (title, SVG) of onset, period, cycles and coverage of their loops."""
    cells = _coloured_cells(outcomes, keys)

    def of_loops(value: Callable[[Outcome, Span], float]) -> dict[str, list[float]]:
        return {
            name: [value(item, main) for item in items if item.is_loop and (main := item.findings.main) is not None]
            for name, items in cells.items()
        }

    not_yet = {name: _onset_survival(items) for name, items in cells.items()}
    stops = {
        name: [item.findings.length / max(1, item.findings.length + item.findings.num_stops) for item in items]
        for name, items in cells.items()
    }
    onsets = of_loops(lambda item, main: main.onset)
    fractions = of_loops(lambda item, main: main.onset / item.findings.length)
    coverage = of_loops(lambda item, main: item.findings.coverage)
    charts = [
        ("Onset", histogram(onsets, "unit where the second copy begins")),
        ("Onset in the text", histogram(fractions, "fraction of the text", limits=(0, 1))),
        (
            "Texts without a loop so far",
            curves(not_yet, "units (Kaplan–Meier, censored at the end)", "fraction", is_stepped=True, y_limits=(0, 1)),
        ),
        ("Period", histogram(of_loops(lambda item, main: main.period), "units per copy")),
        ("Cycles", histogram(of_loops(lambda item, main: min(int(main.cycles), 24)), "copies (24: 24 or more)")),
        ("Waste", histogram(coverage, "fraction of the text in copies", limits=(0, 1))),
    ]
    if any(item.findings.num_stops for items in cells.values() for item in items):
        charts.append(("End of the content", histogram(stops, "fraction of the canvas", limits=(0, 1))))
    return list(cells), charts


def _coloured_cells(outcomes: Sequence[Outcome], keys: Sequence[str]) -> dict[str, list[Outcome]]:
    """Groups of texts with one colour each.

    The cells of all keys if the colours suffice; else the values of the key with the most values that fit; else the
    first cells and the rest together.
    """
    every = {cell_name(keys, cell): items for cell, items in by_group(outcomes, keys).items()}
    if len(every) <= NUM_COLOURS:
        return every
    single = [{cell_name([key], cell): items for cell, items in by_group(outcomes, [key]).items()} for key in keys]
    if fitting := [cells for cells in single if len(cells) <= NUM_COLOURS]:
        return max(fitting, key=len)
    names = list(every)
    first = {name: every[name] for name in names[: NUM_COLOURS - 1]}
    return {**first, "others": [item for name in names[NUM_COLOURS - 1 :] for item in every[name]]}


def _onset_survival(outcomes: Sequence[Outcome]) -> Curve:
    """Kaplan–Meier curve of the onset in units; texts without loops are censored at their end."""
    times, is_event = [], []
    for item in outcomes:
        main = item.findings.main if item.is_loop else None
        times.append(main.onset if main else item.findings.length)
        is_event.append(main is not None)
    found = kaplan_meier(times, is_event)
    return Curve(found.times, found.survival, found.low, found.high)


def trace_charts(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """(title, SVG) from traces: entropy and confidence around the onset, and the order in which copies are written."""
    found = []
    for name, label in (("entropy", "nats"), ("confidence", "probability")):
        around = _around_onset(outcomes, name)
        if around:
            found.append(
                (
                    f"{name.capitalize()} around the onset",
                    curves(around, "tokens from the onset (median, quartiles)", label, mark_x=0),
                )
            )
    leads = [item.traced.temporal_lead for item in outcomes if item.is_loop and item.traced is not None]
    known = [lead for lead in leads if lead is not None]
    if known:
        low, high = min(0.0, *known), max(1.0, *known)
        found.append(
            (
                "Second copy after the first",
                histogram({"looping": known}, "denoising steps (below 0: second copy first)", limits=(low, high)),
            )
        )
    return found


def _around_onset(outcomes: Sequence[Outcome], name: str) -> dict[str, Curve]:
    """Median and quartiles of a trace's list `name` by distance from the onset of looping texts, and for comparison
    around the same relative position of texts without loops."""
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


def difficulty_charts(
    outcomes: Sequence[Outcome], keys: Sequence[str]
) -> tuple[list[str], list[tuple[str, str]]] | None:
    """The conditions, and (title, SVG) of rates over difficulty; None with one level or too many conditions."""
    levels, cells = by_level(outcomes, keys)
    if len(levels) < 2 or len(cells) > NUM_COLOURS:
        return None
    rates_by_title: list[tuple[str, Callable[[Outcome], bool | None]]] = [
        ("Endless", lambda item: item.is_endless),
        ("Looping", lambda item: item.is_loop),
        ("Right", lambda item: item.is_right),
    ]
    cells = dict(sorted(cells.items(), key=lambda cell: natural(cell[0])))  # the same colours as in the other charts
    lines = _lines(levels, list(cells))
    if len(lines) > NUM_COLOURS:
        return None
    charts = []
    for title, is_hit in rates_by_title:
        series = {}
        for name, (cell, on_line) in lines.items():
            of_level = cells[cell]
            rates = {number_in(level): rate_of(of_level[level], is_hit) for level in on_line if level in of_level}
            known = {number: rate for number, rate in sorted(rates.items()) if rate.tries}
            low, high = ([rate.interval[side] for rate in known.values()] for side in (0, 1))
            series[name] = Curve(list(known), [rate.share for rate in known.values()], low, high)
        if any(curve.x for curve in series.values()):
            label = " to ".join((levels[0], levels[-1]))
            charts.append((title, curves(series, label, "fraction", y_limits=(0, 1), has_points=True)))
    return list(lines), charts


def _lines(levels: Sequence[str], cells: Sequence[str]) -> dict[str, tuple[str, list[str]]]:
    """(cell, levels) of each line of a chart: one per cell if the levels' numbers differ, else one per cell and text
    around the number."""
    if len({number_in(level) for level in levels}) == len(levels):
        return {cell: (cell, list(levels)) for cell in cells}
    rests: dict[str, list[str]] = defaultdict(list)
    for level in levels:
        rests[without_number(level)].append(level)
    return {f"{cell} · {rest}": (cell, on_line) for cell in cells for rest, on_line in rests.items()}

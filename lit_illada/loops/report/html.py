"""The report page: one HTML file that loads nothing from elsewhere."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lit_illada import __version__
from lit_illada.loops.compare.comparisons import Effects
from lit_illada.loops.compare.effects import by_level, natural, number_in, points, without_number
from lit_illada.loops.compare.summaries import (
    by_group,
    cell_name,
    onset_survival,
    rate_of,
    same_prompts,
    summaries,
    summary,
)
from lit_illada.loops.config import LoopConfig, LoopsConfig
from lit_illada.loops.detect.spans import Kind, Span
from lit_illada.loops.detect.warning import Warning, warnings
from lit_illada.loops.outcome import Outcome, watched
from lit_illada.loops.report.around import around_onset
from lit_illada.loops.report.charts import NUM_COLOURS, Curve, curves, histogram
from lit_illada.loops.report.marking import shown
from lit_illada.schema import dump
from lit_illada.stats.intervals import Rate

_FOLDER = Path(__file__).parent / "template"
_MOST_TEXTS = 400  # in the browser

KIND_NAMES = {
    Kind.flood: ("flood", "one or two units, 16 times or more; fewer copies of so few units count as nothing"),
    Kind.exact: ("token-exact", "the same 3 units or more, 3 times or more"),
    Kind.near_exact: (
        "near-exact",
        "the same with at most 10 % exchanged, and nothing new in the exchanged words and numbers",
    ),
    Kind.statement: ("statement", "8 of 10 sentences say what was said before, two and a half times over"),
    Kind.circling: ("circling", "as statement, but the text comes to an end by itself; no loop"),
    Kind.overflow: ("EOS overflow", "half of the canvas is end-of-text, and no answer"),
    Kind.runaway: ("runaway", "20 units or more after the answer"),
    Kind.budget: ("budget", "no end within the budget, and none of the others"),
}


def write_report(
    path: Path, outcomes: Sequence[Outcome], keys: Sequence[str], config: LoopConfig, compared: Effects
) -> None:
    """Write the page."""
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined)
    environment.filters.update(percent=_percent, points=points, place=_place)
    page = environment.get_template("report.html").render(**_content(outcomes, keys, config, compared))
    path.write_text(page, encoding="utf-8")


def _content(outcomes: Sequence[Outcome], keys: Sequence[str], config: LoopConfig, compared: Effects) -> dict[str, Any]:
    groups = summaries(outcomes, keys)
    cells = _coloured(outcomes, keys)
    texts = _texts(outcomes, keys)
    found = [item for item in (watched(one, config) for one in outcomes) if item is not None]
    return {
        "made_at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "files": list(dict.fromkeys(item.generation.file for item in outcomes)),
        "keys": keys,
        "whole": summary("all", outcomes),
        "groups": groups,
        "margins": {key: summaries(outcomes, [key]) for key in keys} if len(keys) > 1 else {},
        "kinds": KIND_NAMES,
        "kind_rows": [kind for kind in KIND_NAMES if any(group.kinds[kind].hits for group in groups)],
        "by_difficulty": _by_difficulty(outcomes, keys),
        "rises": compared.harder,
        "differences": compared.same,
        "has_keys": len({item.where for item in compared.same}) > 1,
        "is_judged": any(item.side_effects.right is not None for item in compared.same),
        "remarks": compared.remarks,
        "same": same_prompts(outcomes),
        "charts": _charts(cells),
        "cells": list(cells),
        "timed": _timed(outcomes),
        "warnings": warnings(found, config.warning),
        "min_texts": config.warning.min_texts,
        "leads": _leads,
        "unit": config.unit if any(item.generation.tokens is not None for item in outcomes) else "words",
        "settings": dump(LoopsConfig(config)),
        "texts": _as_script(texts),
        "num_texts": len(texts),
        "num_found": sum(bool(item.findings.kinds) for item in outcomes),
        "num_colours": NUM_COLOURS,
        "style": Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),
        "script": Markup((_FOLDER / "report.js").read_text(encoding="utf-8")),
    }


def _charts(cells: dict[str, list[Outcome]]) -> list[tuple[str, str]]:
    """(title, drawing) of how the loops lie in the texts."""

    def of_loops(value: Callable[[Outcome, Span], float]) -> dict[str, list[float]]:
        return {
            name: [value(item, main) for item in items if item.is_loop and (main := item.findings.main) is not None]
            for name, items in cells.items()
        }

    survival = {name: onset_survival(items) for name, items in cells.items()}
    not_yet = {name: Curve(s.times, s.survival, s.low, s.high) for name, s in survival.items()}
    stops = {
        name: [item.findings.length / max(1, item.findings.length + item.findings.num_stops) for item in items]
        for name, items in cells.items()
    }
    onsets = of_loops(lambda item, main: main.onset)
    fractions = of_loops(lambda item, main: main.onset / item.findings.length)
    coverage = of_loops(lambda item, main: item.findings.coverage)
    charts = [
        ("Onset", histogram(onsets, "unit where the second copy begins")),
        ("Onset in the text", histogram(fractions, "share of the text", limits=(0, 1))),
        (
            "Texts that have not looped yet",
            curves(not_yet, "units (Kaplan–Meier, finished: censored)", "share", is_stepped=True, y_limits=(0, 1)),
        ),
        ("Period", histogram(of_loops(lambda item, main: main.period), "units a copy")),
        ("Cycles", histogram(of_loops(lambda item, main: min(int(main.cycles), 24)), "copies (24: that many or more)")),
        ("Waste", histogram(coverage, "share of the text in copies", limits=(0, 1))),
    ]
    if any(item.findings.num_stops for items in cells.values() for item in items):
        charts.append(("Where the content stops", histogram(stops, "share of the canvas", limits=(0, 1))))
    return charts


def _timed(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """What only traces tell: entropy and confidence around the onset, and whether copies come in order."""
    found = []
    for name, label in (("entropy", "nats"), ("confidence", "probability")):
        around = around_onset(outcomes, name)
        if around:
            found.append(
                (
                    f"{name.capitalize()} around the onset",
                    curves(around, "tokens from the onset (median, quartiles)", label, mark_x=0),
                )
            )
    leads = [item.traced.temporal_lead for item in outcomes if item.is_loop and item.traced is not None]
    told = [lead for lead in leads if lead is not None]
    if told:
        low, high = min(0.0, *told), max(1.0, *told)
        found.append(
            (
                "The second copy after the first",
                histogram({"looping": told}, "denoising steps (below 0: written before it)", limits=(low, high)),
            )
        )
    return found


def _coloured(outcomes: Sequence[Outcome], keys: Sequence[str]) -> dict[str, list[Outcome]]:
    """A colour a cell where the colours suffice; else by the one key with the most values that have a colour each; else
    the first cells, and the rest together."""
    every = {cell_name(keys, cell): items for cell, items in by_group(outcomes, keys).items()}
    if len(every) <= NUM_COLOURS:
        return every
    single = [{cell_name([key], cell): items for cell, items in by_group(outcomes, [key]).items()} for key in keys]
    if fitting := [cells for cells in single if len(cells) <= NUM_COLOURS]:
        return max(fitting, key=len)
    names = list(every)
    kept = {name: every[name] for name in names[: NUM_COLOURS - 1]}
    return {**kept, "others": [item for name in names[NUM_COLOURS - 1 :] for item in every[name]]}


def _by_difficulty(outcomes: Sequence[Outcome], keys: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]] | None:
    """The conditions, and a chart each of what they do to texts as problems get harder."""
    levels, cells = by_level(outcomes, keys)
    if len(levels) < 2 or len(cells) > NUM_COLOURS:
        return None
    questions: list[tuple[str, Callable[[Outcome], bool | None]]] = [
        ("Endless", lambda item: item.is_endless),
        ("Looping", lambda item: item.is_loop),
        ("Right", lambda item: item.is_right),
    ]
    cells = dict(sorted(cells.items(), key=lambda cell: natural(cell[0])))  # each in the colour it has elsewhere
    lines = _lines(levels, list(cells))
    if len(lines) > NUM_COLOURS:
        return None
    charts = []
    for title, question in questions:
        series = {}
        for name, (cell, on_line) in lines.items():
            of_level = cells[cell]
            rates = {number_in(level): rate_of(of_level[level], question) for level in on_line if level in of_level}
            known = {number: rate for number, rate in sorted(rates.items()) if rate.tries}
            low, high = ([rate.interval[side] for rate in known.values()] for side in (0, 1))
            series[name] = Curve(list(known), [rate.share for rate in known.values()], low, high)
        if any(curve.x for curve in series.values()):
            label = " to ".join((levels[0], levels[-1]))
            charts.append((title, curves(series, label, "share", y_limits=(0, 1), has_points=True)))
    return list(lines), charts


def _lines(levels: Sequence[str], cells: Sequence[str]) -> dict[str, tuple[str, list[str]]]:
    """(cell, levels) of each line of a chart: one a cell where a level's number tells it from the others; else also one
    for each of what stands before the numbers."""
    if len({number_in(level) for level in levels}) == len(levels):
        return {cell: (cell, list(levels)) for cell in cells}
    rests: dict[str, list[str]] = defaultdict(list)
    for level in levels:
        rests[without_number(level)].append(level)
    return {f"{cell} · {rest}": (cell, on_line) for cell in cells for rest, on_line in rests.items()}


def _texts(outcomes: Sequence[Outcome], keys: Sequence[str]) -> list[dict[str, Any]]:
    """What the browser shows, loops first: what loops or ends badly, of every group some where there are too many."""
    cells = by_group([item for item in outcomes if item.findings.kinds], keys)
    num_found = sum(map(len, cells.values()))
    share = num_found if num_found <= _MOST_TEXTS else max(1, _MOST_TEXTS // len(cells))
    chosen = [
        (item, cell_name(keys, cell))
        for cell, items in cells.items()
        for item in sorted(items, key=lambda one: (not one.is_loop, -one.findings.coverage))[:share]
    ]
    return [shown(item, name) for item, name in sorted(chosen, key=lambda pair: not pair[0].is_loop)]


def _as_script(texts: list[dict[str, Any]]) -> Markup:
    """JSON that cannot close the script it stands in."""
    text = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _percent(share: float, digits: int = 1) -> str:
    return "–" if share != share else f"{100 * share:.{digits}f}%"


def _place(rate: Rate) -> dict[str, float]:
    """Where a rate's mark and its interval stand, in percent of the axis."""
    low, high = rate.interval
    return {"low": 100 * low, "width": 100 * (high - low), "share": 100 * rate.share if rate.tries else 0.0}


def _leads(warning: Warning) -> str:
    if not warning.leads:
        return "–"
    ordered = sorted(warning.leads)
    return f"{ordered[len(ordered) // 2]:+.0f} ({ordered[0]:+.0f} to {ordered[-1]:+.0f})"

"""The report page: one HTML file that loads nothing from elsewhere."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lit_illada import __version__
from lit_illada.loops.compare.comparisons import Effects
from lit_illada.loops.compare.effects import points
from lit_illada.loops.compare.summaries import Summary, by_group, cell_name, same_prompts, summaries, summary
from lit_illada.loops.config import LoopConfig, LoopsConfig
from lit_illada.loops.detect.spans import Kind
from lit_illada.loops.detect.warning import Warning, warnings
from lit_illada.loops.outcome import Outcome, watched
from lit_illada.loops.report.drawings import difficulty_charts, loop_charts, trace_charts
from lit_illada.loops.report.marking import shown
from lit_illada.report.charts import NUM_COLOURS
from lit_illada.report.page import render_page, script_json
from lit_illada.schema import dump
from lit_illada.stats.intervals import Rate

_PAGE = Path(__file__).parent / "page"
_MOST_TEXTS = 400  # in the browser

KIND_NAMES = {
    Kind.flood: ("flood", "one or two units, 16 times or more; fewer copies of such short units do not count"),
    Kind.exact: ("token-exact", "3 or more units, repeated 3 times or more"),
    Kind.near_exact: (
        "near-exact",
        "as token-exact, with at most 10 % of the units changed and no new content in them",
    ),
    Kind.statement: ("statement", "8 of 10 sentences repeat earlier ones, for at least 2.5 copies"),
    Kind.circling: ("circling", "as statement, but the text ends by itself; not a loop"),
    Kind.overflow: ("EOS overflow", "half of the canvas is end-of-text, without an answer"),
    Kind.runaway: ("runaway", "20 units or more after the answer"),
    Kind.budget: ("budget", "no end within the budget, and no other kind"),
}


def write_report(
    path: Path,
    outcomes: Sequence[Outcome],
    keys: Sequence[str],
    config: LoopConfig,
    groups: Sequence[Summary],
    compared: Effects,
) -> None:
    """Writes the page to a file. groups: summaries of the outcomes by the keys."""
    filters: dict[str, Callable[..., Any]] = {"percent": _percent, "points": points, "place": _place}
    content = _content(outcomes, keys, config, groups, compared)
    path.write_text(render_page(_PAGE, content, filters), encoding="utf-8")


def _content(
    outcomes: Sequence[Outcome], keys: Sequence[str], config: LoopConfig, groups: Sequence[Summary], compared: Effects
) -> dict[str, Any]:
    cells, charts = loop_charts(outcomes, keys)
    by_difficulty = difficulty_charts(outcomes, keys)
    timed = trace_charts(outcomes)
    traced = [item for item in (watched(one, config) for one in outcomes) if item is not None]
    texts = _texts(outcomes, keys)
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
        "same": same_prompts(outcomes),
        "by_difficulty": by_difficulty,
        "rises": compared.harder,
        "differences": compared.same,
        "has_keys": len({item.where for item in compared.same}) > 1,
        "is_judged": any(item.side_effects.right is not None for item in compared.same),
        "remarks": compared.remarks,
        "charts": charts,
        "cells": cells,
        "timed": timed,
        "warnings": warnings(traced, config.warning),
        "min_texts": config.warning.min_texts,
        "leads": _leads,
        "unit": config.unit if any(item.generation.tokens is not None for item in outcomes) else "words",
        "settings": dump(LoopsConfig(config)),
        "texts": script_json(texts),
        "num_texts": len(texts),
        "num_found": sum(bool(item.findings.kinds) for item in outcomes),
        "num_colours": NUM_COLOURS,
    }


def _texts(outcomes: Sequence[Outcome], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Texts for the browser that loop or end badly, loops first; at most _MOST_TEXTS, divided among the groups."""
    cells = by_group([item for item in outcomes if item.findings.kinds], keys)
    num_found = sum(map(len, cells.values()))
    per_group = num_found if num_found <= _MOST_TEXTS else max(1, _MOST_TEXTS // len(cells))
    chosen = [
        (item, cell_name(keys, cell))
        for cell, items in cells.items()
        for item in sorted(items, key=lambda one: (not one.is_loop, -one.findings.coverage))[:per_group]
    ]
    return [shown(item, name) for item, name in sorted(chosen, key=lambda pair: not pair[0].is_loop)]


def _percent(share: float, digits: int = 1) -> str:
    return "–" if share != share else f"{100 * share:.{digits}f}%"


def _place(rate: Rate) -> dict[str, float]:
    """Positions of a rate and its interval, in percent of the axis."""
    low, high = rate.interval
    return {"low": 100 * low, "width": 100 * (high - low), "share": 100 * rate.share if rate.tries else 0.0}


def _leads(warning: Warning) -> str:
    if not warning.leads:
        return "–"
    ordered = sorted(warning.leads)
    return f"{ordered[len(ordered) // 2]:+.0f} ({ordered[0]:+.0f} to {ordered[-1]:+.0f})"

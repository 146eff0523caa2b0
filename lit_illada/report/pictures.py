"""PNG pictures of a page's plots, for papers and slides, drawn by matplotlib."""

import re
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_illada.report.plots import PlotFigure

_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_SYMBOLS = {"circle": "o", "diamond": "D", "square": "s", "triangle-up": "^", "line-ns": "|"}
_RGBA = re.compile(r"rgba\((\d+),(\d+),(\d+),([\d.]+)\)")


def draw(figure: PlotFigure, path: Path) -> None:
    """Write a plot as a PNG file; of its variants, the first."""
    picture = Figure(figsize=(8, max(3.2, figure.layout["height"] / 100)), layout="constrained", dpi=150)
    axes = picture.subplots()
    rows = figure.layout["yaxis"].get("categoryarray")
    for trace in figure.data:
        if trace["type"] == "heatmap":
            _heat_map(axes, trace)
        else:
            _scatter(axes, trace, rows)
    _frame(axes, figure, rows)
    picture.savefig(path)


def _scatter(axes: Axes, trace: dict[str, Any], rows: list[str] | None) -> None:
    y = [rows.index(arm) for arm in trace["y"]] if rows else trace["y"]
    if trace.get("fill"):
        red, green, blue, opacity = map(float, _RGBA.fullmatch(trace["fillcolor"]).groups())  # type: ignore[union-attr]
        if trace["x"]:
            axes.fill(trace["x"], y, color=(red / 255, green / 255, blue / 255, opacity), linewidth=0)
        return
    marker, line = trace.get("marker", {}), trace.get("line", {})
    has_lines = "lines" in trace["mode"]
    colour = line.get("color") if has_lines else marker["color"]
    axes.plot(
        trace["x"],
        y,
        color=colour,
        linestyle=_DASHES[line.get("dash", "solid")] if has_lines else "none",
        linewidth=line.get("width", 1),
        marker=_SYMBOLS[marker["symbol"]] if marker else None,
        markersize=0.75 * marker.get("size", 0),
        markeredgewidth=2 if marker.get("symbol") == "line-ns" else 0,
        alpha=marker.get("opacity", 1),
        label=trace["name"],
    )
    if bar := trace.get("error_x"):
        below = bar.get("arrayminus", bar["array"])
        axes.errorbar(
            trace["x"], y, xerr=[below, bar["array"]], color=colour, linestyle="none", capsize=3, linewidth=1.2
        )


def _heat_map(axes: Axes, trace: dict[str, Any]) -> None:
    cells = [[float("nan") if value is None else value for value in row] for row in trace["z"]]
    shown = axes.imshow(cells, cmap="viridis_r" if trace["reversescale"] else "viridis", aspect="auto")
    for row, texts in enumerate(trace["text"]):
        for column, text in enumerate(texts):
            shade = float(shown.norm(cells[row][column]))  # type: ignore[arg-type]
            is_dark = (1 - shade if trace["reversescale"] else shade) < 0.55
            axes.text(column, row, text, ha="center", va="center", color="white" if is_dark else "black")
    axes.set_xticks(range(len(trace["x"])), trace["x"])
    axes.set_yticks(range(len(trace["y"])), trace["y"])


def _frame(axes: Axes, figure: PlotFigure, rows: list[str] | None) -> None:
    layout = figure.layout
    axes.set_title(figure.title, loc="left", fontsize=10)
    for axis, name in ((axes.xaxis, "xaxis"), (axes.yaxis, "yaxis")):
        if title := layout[name].get("title"):
            axis.set_label_text(title["text"])
    if layout["xaxis"].get("type") == "log":
        axes.set_xscale("log")
    for set_limits, name in ((axes.set_xlim, "xaxis"), (axes.set_ylim, "yaxis")):
        if limits := layout[name].get("range"):
            set_limits(*limits)
    is_map = figure.data[0]["type"] == "heatmap"
    if rows:
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        if layout["xaxis"].get("zeroline"):
            axes.axvline(0, color="0.4", linewidth=0.8)
    elif not is_map:
        labels = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(labels.values(), labels.keys(), fontsize=8, frameon=False, ncols=1 + len(labels) // 12)
    if not is_map:
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)

"""Interactive plots of a page: Plotly's data and layouts as plain dicts. The page adds the colours of text and grid."""

from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

Trace = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """Other values of a figure's traces, such as another x axis, that the reader can switch to."""

    label: str
    x: list[Any]  # one list per trace
    y: list[Any]  # one list per trace
    layout: dict[str, Any]  # replaces entries of the figure's layout


@dataclass(frozen=True)
class PlotFigure:
    """A plot of a page, and of the picture beside it."""

    id: str  # of the HTML element; the picture is ID.png
    title: str
    caption: str  # what the plot shows and how to read it
    data: list[Trace]  # each names its arm in `meta`, by which the page hides and shows it in all plots at once
    layout: dict[str, Any]
    variants: list[Variant] = field(default_factory=list)  # empty: no switch

    def to_tree(self) -> dict[str, Any]:
        """Plain data for JSON, numbers rounded to six digits."""
        return _rounded(asdict(self))


def slug(*names: str) -> str:
    """Lower-case identifier of letters, digits and hyphens, for elements and files."""
    return "-".join("".join(c if c.isalnum() else "-" for c in name) for name in names).lower()


def _rounded(tree: Any) -> Any:
    # more than six digits cannot be seen in a plot, and JSON has neither NaN nor infinity
    if isinstance(tree, float):
        return float(f"{tree:.6g}") if isfinite(tree) else None
    if isinstance(tree, dict):
        return {key: _rounded(value) for key, value in tree.items()}
    return [_rounded(item) for item in tree] if isinstance(tree, list) else tree

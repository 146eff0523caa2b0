"""Which colour, dash and symbol does an arm have, the same in every plot and readable on light and dark?"""

from collections.abc import Sequence
from dataclasses import dataclass

# told apart by people with any common colour vision, of middling lightness
_COLOURS = (
    "#4269d0",
    "#e0a100",
    "#ff725c",
    "#3ca951",
    "#a463f2",
    "#2ab7b0",
    "#ff8ab7",
    "#9c6b4e",
    "#6f9bea",
    "#97a800",
)
_NEUTRAL = "#8a8f98"
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "diamond", "square", "triangle-up")


@dataclass(frozen=True)
class Look:
    """dash, symbol: Plotly's names."""

    colour: str
    dash: str
    symbol: str

    def faded(self, opacity: float) -> str:
        """The colour for an area behind lines."""
        red, green, blue = (int(self.colour[place : place + 2], 16) for place in (1, 3, 5))
        return f"rgba({red},{green},{blue},{opacity})"


def looks_of(arms: Sequence[str], baseline: str) -> dict[str, Look]:
    """The baseline is grey; past ten arms the colours come again with another dash and symbol."""
    found = {baseline: Look(_NEUTRAL, "solid", "circle")}
    for number, arm in enumerate(arm for arm in arms if arm != baseline):
        again, colour = divmod(number, len(_COLOURS))
        found[arm] = Look(_COLOURS[colour], _DASHES[again % len(_DASHES)], _SYMBOLS[again % len(_SYMBOLS)])
    return found

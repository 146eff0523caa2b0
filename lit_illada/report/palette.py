"""Colours, dashes and symbols of arms and series: the same in every plot, readable on light and dark pages."""

from collections.abc import Sequence
from dataclasses import dataclass

# of middling lightness, and distinguishable under the common deficiencies of colour vision
COLOURS = (
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
    """Appearance of an arm."""

    colour: str  # hexadecimal, #rrggbb
    dash: str  # Plotly's name
    symbol: str  # Plotly's name

    def faded(self, opacity: float) -> str:
        """CSS colour of an area behind lines, at an opacity between 0 and 1."""
        red, green, blue = (int(self.colour[start : start + 2], 16) for start in (1, 3, 5))
        return f"rgba({red},{green},{blue},{opacity})"


def looks_of(arms: Sequence[str], baseline: str) -> dict[str, Look]:
    """Look of each arm. The baseline is grey; from the eleventh other arm on, colours repeat with another dash."""
    looks = {baseline: Look(_NEUTRAL, "solid", "circle")}
    for number, arm in enumerate(arm for arm in arms if arm != baseline):
        repetition, colour = divmod(number, len(COLOURS))
        looks[arm] = Look(COLOURS[colour], _DASHES[repetition % len(_DASHES)], _SYMBOLS[repetition % len(_SYMBOLS)])
    return looks


def series_css() -> str:
    """CSS variables --s0, --s1, … and the classes s0, s1, … that set the colour --c of an element."""
    variables = " ".join(f"--s{number}: {colour};" for number, colour in enumerate(COLOURS))
    classes = " ".join(f".s{number} {{ --c: var(--s{number}); }}" for number in range(len(COLOURS)))
    return f":root {{ {variables} }}\n{classes}"

"""What changes how often a model reasons without end: harder problems, and each condition on the same problems.

A text is endless when it loops or does not stop within its budget. Differences of shares have bootstrap intervals with
seeds as clusters: seeds are drawn whole, then the problems within each. With one seed they are of its problems alone.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from lit_illada.loops.outcome import Outcome
from lit_illada.loops.statistics import Paired, Rate, cluster_draws, mcnemar

SEED = "seed"
DIFFICULTY_KEYS = ("level", "difficulty")
_MOST_PAIRED = 4  # values of a key, beyond which each is compared with the first alone

_Place = tuple[str | None, ...]


@dataclass(frozen=True)
class Effect:
    """The share of endless texts under `second`, less that under `first`. low, high: 95 %. by_seed: of each seed alone.
    paired: where both were asked the same problems."""

    where: str
    first: str
    second: str
    first_rate: Rate
    second_rate: Rate
    low: float
    high: float
    by_seed: dict[str, float]
    paired: Paired | None = None

    @property
    def difference(self) -> float:
        return self.second_rate.share - self.first_rate.share

    @property
    def verdict(self) -> str:
        """A null result is a result too."""
        if self.low > 0:
            return "more"
        return "fewer" if self.high < 0 else "not separable"

    def __str__(self) -> str:
        return f"{points(self.difference)} ({points(self.low)} to {points(self.high)})"


def rises(outcomes: Sequence[Outcome], keys: Sequence[str]) -> list[Effect]:
    """From the easiest level to the hardest, in each cell of the other keys. None where no level bears a number."""
    levels, cells = by_level(outcomes, keys)
    found = []
    for cell, of_level in cells.items():
        if len(levels) > 1 and levels[0] in of_level and levels[-1] in of_level:
            ends = (_by_seed(of_level[levels[0]]), _by_seed(of_level[levels[-1]]))
            found.append(_unpaired(cell, levels[0], levels[-1], *ends))
    return found


def by_level(outcomes: Sequence[Outcome], keys: Sequence[str]) -> tuple[list[str], dict[str, dict[str, list[Outcome]]]]:
    """The levels from easy to hard, and the texts by the cell of the other keys and by level.

    Nothing where no key tells the difficulty, or its levels' names bear no numbers to order them by.
    """
    key = next((key for key in DIFFICULTY_KEYS if key in keys), None)
    levels = sorted({item.generation.groups.get(key, "") for item in outcomes}, key=natural) if key else []
    if key is None or not all(re.search(r"\d", level) for level in levels):
        return [], {}
    cells: dict[str, dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for item in outcomes:
        groups = item.generation.groups
        cell = " · ".join(groups.get(other, "–") for other in keys if other != key) or "all"
        cells[cell][groups.get(key, "")].append(item)
    return levels, cells


def differences(outcomes: Sequence[Outcome], keys: Sequence[str]) -> list[Effect]:
    """Of a key's values against each other where there are at most four, else against the first in the files.

    Only the same problems of the same seed compare, all other keys equal; a problem's first text counts.
    """
    found = []
    for key in keys:
        rest = [SEED, *(other for other in keys if other != key)]
        cells: dict[str, dict[_Place, bool]] = defaultdict(dict)
        for item in outcomes:
            groups = item.generation.groups
            place = (item.generation.prompt, *(groups.get(other) for other in rest))
            if item.generation.prompt is not None:
                cells[groups.get(key, "–")].setdefault(place, item.is_endless)
        values = list(cells)
        pairs = combinations(sorted(values, key=natural), 2)
        if len(values) > _MOST_PAIRED:
            pairs = ((values[0], value) for value in values[1:])  # type: ignore[assignment]
        effects = (_paired(key, first, second, cells[first], cells[second]) for first, second in pairs)
        found += [effect for effect in effects if effect is not None]
    return found


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.0f}"


def natural(text: str) -> list[tuple[float, str]]:
    """Sorts texts by the numbers in them: depth_2 before depth_12, 0.25 before 1."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(float(part), "") if index % 2 else (-1.0, part) for index, part in enumerate(parts)]


def number_in(text: str) -> float:
    """The last number in a level's name: depth_12 is 12."""
    return float(re.findall(r"\d+(?:\.\d+)?", text)[-1])


def _unpaired(
    where: str, first: str, second: str, of_first: Mapping[str, list[bool]], of_second: Mapping[str, list[bool]]
) -> Effect:
    seeds = [seed for seed in of_first if seed in of_second]
    draws = cluster_draws([(of_first[seed], of_second[seed]) for seed in seeds])
    low, high = _percentiles(draws[:, 1] - draws[:, 0])
    by_seed = {seed: float(np.mean(of_second[seed]) - np.mean(of_first[seed])) for seed in seeds}
    return Effect(where, first, second, _rate(of_first, seeds), _rate(of_second, seeds), low, high, by_seed)


def _paired(
    key: str, first: str, second: str, of_first: Mapping[_Place, bool], of_second: Mapping[_Place, bool]
) -> Effect | None:
    places = [place for place in of_first if place in of_second]
    if not places:
        return None
    by_seed: dict[str, list[int]] = defaultdict(list)
    for place in places:
        by_seed[place[1] or ""].append(int(of_second[place]) - int(of_first[place]))
    low, high = _percentiles(cluster_draws([(values,) for values in by_seed.values()])[:, 0])
    hits = [(of_first[place], of_second[place]) for place in places]
    first_rate, second_rate = (Rate(sum(pair[side] for pair in hits), len(hits)) for side in (0, 1))
    means = {seed: float(np.mean(values)) for seed, values in by_seed.items()}
    return Effect(key, first, second, first_rate, second_rate, low, high, means, mcnemar(hits))


def _by_seed(outcomes: Sequence[Outcome]) -> dict[str, list[bool]]:
    hits: dict[str, list[bool]] = defaultdict(list)
    for item in outcomes:
        hits[item.generation.groups.get(SEED, "")].append(item.is_endless)
    return hits


def _rate(hits: Mapping[str, list[bool]], seeds: Sequence[str]) -> Rate:
    return Rate(sum(sum(hits[seed]) for seed in seeds), sum(len(hits[seed]) for seed in seeds))


def _percentiles(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)

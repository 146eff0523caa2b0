"""What changes how often a model reasons without end: harder problems, and each condition on the same problems.

A text is endless when it loops or does not stop within its budget. Differences of shares have Student's intervals over
seeds, the seeds' own differences being what varies; with one seed they are of its problems alone. Verdicts are
corrected for as many comparisons as stand in one table (Holm).
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import isnan, nan
from statistics import mean

from lit_illada.intervals import holm
from lit_illada.loops.outcome import Outcome
from lit_illada.loops.records import FILE
from lit_illada.loops.statistics import (
    Paired,
    Rate,
    difference_variance,
    mcnemar,
    mean_over_seeds,
    paired_variance,
)

SEED = "seed"
LEVEL = 0.05
DIFFICULTY_KEYS = ("level", "difficulty")
_MOST_PAIRED = 4  # values of a key, beyond which each is compared with the first alone

_Place = tuple[str | None, ...]


@dataclass(frozen=True)
class Effect:
    """The share of endless texts under `second`, less that under `first`: the mean of the seeds' differences.

    low, high: its 95 % interval, by itself. p_value: corrected for the others of its table; nan for a single seed where
    the others have several. by_seed: of each seed alone. paired: where both were asked the same problems.
    """

    where: str
    first: str
    second: str
    first_rate: Rate
    second_rate: Rate
    low: float
    high: float
    p_value: float
    by_seed: dict[str, float]
    paired: Paired | None = None

    @property
    def difference(self) -> float:
        return mean(self.by_seed.values())

    @property
    def verdict(self) -> str:
        """A null result is a result too."""
        if isnan(self.p_value):
            return "one seed"
        if self.p_value >= LEVEL:
            return "not separable"
        return "more" if self.difference > 0 else "fewer"

    def __str__(self) -> str:
        return f"{points(self.difference)} ({points(self.low)} to {points(self.high)})"


def rises(outcomes: Sequence[Outcome], keys: Sequence[str]) -> list[Effect]:
    """From the easiest level to the hardest, in each cell of the other keys. None where no level bears a number."""
    levels, cells = by_level(outcomes, keys)
    found = []
    for cell, of_level in cells.items():
        if len(levels) > 1 and levels[0] in of_level and levels[-1] in of_level:
            easy, hard = (_by_seed(of_level[level]) for level in (levels[0], levels[-1]))
            if easy.keys() & hard.keys():
                found.append(_unpaired(cell, levels[0], levels[-1], easy, hard))
    return _corrected(found)


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

    Only the same problems of the same seed compare, all else that the files tell being equal; a problem's first text
    counts.
    """
    found = []
    told = dict.fromkeys(name for item in outcomes for name in item.generation.groups)
    for key in keys:
        rest = [SEED, *(name for name in told if name not in (SEED, FILE, key))]
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
    return _corrected(found)


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.0f}"


def natural(text: str) -> list[tuple[float, str]]:
    """Sorts texts by the numbers in them: depth_2 before depth_12, 0.25 before 1."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(float(part), "") if index % 2 else (-1.0, part) for index, part in enumerate(parts)]


def number_in(text: str) -> float:
    """The last number in a level's name: depth_12 is 12."""
    return float(_last_number(text)[0])


def without_number(text: str) -> str:
    """A level's name with … for the number that `number_in` reads."""
    number = _last_number(text)
    return f"{text[: number.start()]}…{text[number.end() :]}"


def _last_number(text: str) -> re.Match[str]:
    return list(re.finditer(r"\d+(?:\.\d+)?", text))[-1]


def _unpaired(
    where: str, first: str, second: str, of_first: Mapping[str, list[bool]], of_second: Mapping[str, list[bool]]
) -> Effect:
    seeds = [seed for seed in of_first if seed in of_second]
    by_seed = {seed: mean(of_second[seed]) - mean(of_first[seed]) for seed in seeds}
    found = mean_over_seeds(
        list(by_seed.values()), [difference_variance(of_first[seed], of_second[seed]) for seed in seeds]
    )
    rates = (_rate(of_first, seeds), _rate(of_second, seeds))
    return Effect(where, first, second, *rates, *_within_1(found.low, found.high), found.p_value, by_seed)


def _paired(
    key: str, first: str, second: str, of_first: Mapping[_Place, bool], of_second: Mapping[_Place, bool]
) -> Effect | None:
    hits: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for place in of_first:
        if place in of_second:
            hits[place[1] or ""].append((of_first[place], of_second[place]))
    if not hits:
        return None
    by_seed = {seed: mean(second - first for first, second in pairs) for seed, pairs in hits.items()}
    found = mean_over_seeds(list(by_seed.values()), [paired_variance(mcnemar(pairs)) for pairs in hits.values()])
    every = [pair for pairs in hits.values() for pair in pairs]
    together = mcnemar(every)
    first_rate, second_rate = (Rate(sum(pair[side] for pair in every), len(every)) for side in (0, 1))
    p_value = found.p_value if len(hits) > 1 else together.p_value
    ends = _within_1(found.low, found.high)
    return Effect(key, first, second, first_rate, second_rate, *ends, p_value, by_seed, together)


def _corrected(effects: Sequence[Effect]) -> list[Effect]:
    is_over_seeds = any(len(effect.by_seed) > 1 for effect in effects)
    # beside comparisons of several models, one model's problems are no comparison
    told = {str(i): e.p_value for i, e in enumerate(effects) if len(e.by_seed) > 1 or not is_over_seeds}
    p = holm(told, len(effects))
    return [replace(effect, p_value=p.get(str(index), nan)) for index, effect in enumerate(effects)]


def _within_1(low: float, high: float) -> tuple[float, float]:
    return max(low, -1.0), min(high, 1.0)


def _by_seed(outcomes: Sequence[Outcome]) -> dict[str, list[bool]]:
    hits: dict[str, list[bool]] = defaultdict(list)
    for item in outcomes:
        hits[item.generation.groups.get(SEED, "")].append(item.is_endless)
    return hits


def _rate(hits: Mapping[str, list[bool]], seeds: Sequence[str]) -> Rate:
    return Rate(sum(sum(hits[seed]) for seed in seeds), sum(len(hits[seed]) for seed in seeds))

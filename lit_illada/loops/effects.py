"""What changes how often a model reasons without end: harder problems, and each condition on the same problems.

A condition that ends endless texts may cost right answers: what else it does to the same problems stands beside.

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

from lit_illada.errors import UserError, unknown
from lit_illada.intervals import holm
from lit_illada.loops.outcome import Outcome
from lit_illada.loops.records import FILE
from lit_illada.loops.statistics import (
    Mean,
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
class SideEffects:
    """What `second` does to the same problems besides.

    first_right, second_right: of the texts whose truth is known. right: their difference, the mean over seeds with its
    95 % interval by itself; None without a truth. harmed: of the texts that came to an end and were right under
    `first`, those that are wrong under `second`. healed: of those that were endless and wrong, those that are right.
    first_length, second_length: means, in units.
    """

    first_right: Rate
    second_right: Rate
    right: Mean | None
    harmed: Rate
    healed: Rate
    first_length: float
    second_length: float


@dataclass(frozen=True)
class Effect:
    """The share of endless texts under `second`, less that under `first`: the mean of the seeds' differences.

    low, high: its 95 % interval, by itself. p_value: corrected for the others of its table; nan for a single seed where
    the others have several. by_seed: of each seed alone. paired, besides: where both were asked the same problems.
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
    besides: SideEffects | None = None

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


@dataclass(frozen=True)
class Effects:
    """harder: from the easiest level to the hardest. same: on the same problems under two conditions."""

    harder: list[Effect]
    same: list[Effect]


def effects(outcomes: Sequence[Outcome], keys: Sequence[str], pairs: Sequence[tuple[str, str]] = ()) -> Effects:
    """Both kinds. Raises UserError where no key holds both values of a pair."""
    values = {key: {item.generation.groups.get(key, "–") for item in outcomes} for key in keys}
    for pair in pairs:
        if not any(set(pair) <= found for found in values.values()):
            every = set().union(*values.values())
            stranger = next((name for name in pair if name not in every), None)
            if stranger is not None:
                raise unknown("group to compare", stranger, every)
            raise UserError(f"{pair[0]!r} and {pair[1]!r} are of different fields: two values of one field compare")
    return Effects(rises(outcomes, keys), differences(outcomes, keys, pairs))


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


def differences(
    outcomes: Sequence[Outcome], keys: Sequence[str], pairs: Sequence[tuple[str, str]] = ()
) -> list[Effect]:
    """Of a key's values against each other where there are at most four, else against the first in the files.

    pairs: (first, second), the only values that are compared. Only the same problems of the same seed compare, all else
    that the files tell being equal; a problem's first text counts.
    """
    found = []
    told = dict.fromkeys(name for item in outcomes for name in item.generation.groups)
    for key in keys:
        rest = [SEED, *(name for name in told if name not in (SEED, FILE, key))]
        cells: dict[str, dict[_Place, Outcome]] = defaultdict(dict)
        for item in outcomes:
            groups = item.generation.groups
            place = (item.generation.prompt, *(groups.get(other) for other in rest))
            if item.generation.prompt is not None:
                cells[groups.get(key, "–")].setdefault(place, item)
        chosen = [pair for pair in pairs if set(pair) <= cells.keys()] if pairs else _usual_pairs(list(cells))
        effects = (_paired(key, first, second, cells[first], cells[second]) for first, second in chosen)
        found += [effect for effect in effects if effect is not None]
    return _corrected(found)


def _usual_pairs(values: Sequence[str]) -> list[tuple[str, str]]:
    if len(values) > _MOST_PAIRED:
        return [(values[0], value) for value in values[1:]]
    return list(combinations(sorted(values, key=natural), 2))


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
    key: str, first: str, second: str, of_first: Mapping[_Place, Outcome], of_second: Mapping[_Place, Outcome]
) -> Effect | None:
    texts: dict[str, list[tuple[Outcome, Outcome]]] = defaultdict(list)
    for place in of_first:
        if place in of_second:
            texts[place[1] or ""].append((of_first[place], of_second[place]))
    if not texts:
        return None
    hits = {seed: [(one.is_endless, other.is_endless) for one, other in both] for seed, both in texts.items()}
    found, by_seed = _over_seeds(hits)
    every = [pair for pairs in hits.values() for pair in pairs]
    together = mcnemar(every)
    p_value = found.p_value if len(hits) > 1 else together.p_value
    ends = _within_1(found.low, found.high)
    return Effect(key, first, second, *_rates(every), *ends, p_value, by_seed, together, _side_effects(texts))


def _side_effects(texts: Mapping[str, Sequence[tuple[Outcome, Outcome]]]) -> SideEffects:
    every = [both for of_seed in texts.values() for both in of_seed]
    judged = {
        seed: [
            (one.is_right, other.is_right)
            for one, other in of_seed
            if one.is_right is not None and other.is_right is not None
        ]
        for seed, of_seed in texts.items()
    }
    judged = {seed: pairs for seed, pairs in judged.items() if pairs}
    first_right, second_right = _rates([pair for pairs in judged.values() for pair in pairs])
    harmed = [other.is_right is False for one, other in every if one.is_right and not one.is_endless]
    healed = [other.is_right is True for one, other in every if one.is_right is False and one.is_endless]
    lengths = (mean(both[side].findings.length for both in every) for side in (0, 1))
    right = _over_seeds(judged)[0] if judged else None
    return SideEffects(
        first_right, second_right, right, Rate(sum(harmed), len(harmed)), Rate(sum(healed), len(healed)), *lengths
    )


def _over_seeds(hits: Mapping[str, Sequence[tuple[bool, bool]]]) -> tuple[Mean, dict[str, float]]:
    """The mean of the seeds' differences of shares, second less first, and each seed's own."""
    by_seed = {seed: mean(second - first for first, second in pairs) for seed, pairs in hits.items()}
    return mean_over_seeds(
        list(by_seed.values()), [paired_variance(mcnemar(pairs)) for pairs in hits.values()]
    ), by_seed


def _rates(pairs: Sequence[tuple[bool, bool]]) -> tuple[Rate, Rate]:
    first, second = (Rate(sum(pair[side] for pair in pairs), len(pairs)) for side in (0, 1))
    return first, second


def _corrected(effects: Sequence[Effect]) -> list[Effect]:
    is_over_seeds = any(len(effect.by_seed) > 1 for effect in effects)
    # beside comparisons of several models, one model's problems are no comparison
    told = {i: e.p_value for i, e in enumerate(effects) if len(e.by_seed) > 1 or not is_over_seeds}
    p = holm(told, len(effects))
    return [replace(effect, p_value=p.get(index, nan)) for index, effect in enumerate(effects)]


def _within_1(low: float, high: float) -> tuple[float, float]:
    return max(low, -1.0), min(high, 1.0)


def _by_seed(outcomes: Sequence[Outcome]) -> dict[str, list[bool]]:
    hits: dict[str, list[bool]] = defaultdict(list)
    for item in outcomes:
        hits[item.generation.groups.get(SEED, "")].append(item.is_endless)
    return hits


def _rate(hits: Mapping[str, list[bool]], seeds: Sequence[str]) -> Rate:
    return Rate(sum(sum(hits[seed]) for seed in seeds), sum(len(hits[seed]) for seed in seeds))

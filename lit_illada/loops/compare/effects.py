"""Differences in the fraction of endless texts, with intervals and verdicts, and the rise from easy to hard problems.

A text is endless if it loops or does not stop within its budget. Differences of fractions have Student's intervals over
seeds; with a single seed the interval covers its problems only. Verdicts are corrected for all comparisons of a table
(Holm).
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from statistics import mean
from typing import TypeVar

from lit_illada.loops.outcome import Outcome
from lit_illada.stats.intervals import Rate, difference_variance, mean_over_seeds
from lit_illada.stats.tests import holm

SEED = "seed"
LEVEL = 0.05
ABSENT = "–"  # the group of a text whose file says none


@dataclass(frozen=True)
class Effect:
    """The fraction of endless texts under `second` minus that under `first`."""

    where: str  # condition whose levels are compared, or field whose values are
    first: str
    second: str
    first_rate: Rate
    second_rate: Rate
    low: float  # lower end of the difference's 95 % interval, not corrected for other comparisons
    high: float  # upper end
    p_value: float  # corrected for the comparisons of the table; nan: a single seed among comparisons of several
    by_seed: dict[str, float]  # difference of each seed

    @property
    def difference(self) -> float:
        """The mean of the seeds' differences."""
        return mean(self.by_seed.values())

    @property
    def verdict(self) -> str:
        """The finding in words: "more", "fewer", "not separable", or "one seed" where nothing was tested."""
        if isnan(self.p_value):
            return "one seed"
        if self.p_value >= LEVEL:
            return "not separable"
        return "more" if self.difference > 0 else "fewer"

    def __str__(self) -> str:
        return f"{points(self.difference)} ({points(self.low)} to {points(self.high)})"


AnyEffect = TypeVar("AnyEffect", bound=Effect)


def corrected(effects: Sequence[AnyEffect], num_planned: int = 0) -> list[AnyEffect]:
    """Holm-corrected effects. num_planned: number of planned comparisons, if some are impossible."""
    is_over_seeds = any(len(effect.by_seed) > 1 for effect in effects)
    # a test over one model's problems is not comparable with tests over several models
    p_values = {i: e.p_value for i, e in enumerate(effects) if len(e.by_seed) > 1 or not is_over_seeds}
    p = holm(p_values, max(num_planned, len(effects)))
    return [replace(effect, p_value=p.get(index, nan)) for index, effect in enumerate(effects)]


def within_1(low: float, high: float) -> tuple[float, float]:
    """The interval cut to [−1, 1], the range of a difference of fractions."""
    return max(low, -1.0), min(high, 1.0)


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return f"{round(100 * difference):+d}"


DIFFICULTY_KEYS = ("level", "difficulty")


def rises(outcomes: Sequence[Outcome], keys: Sequence[str]) -> list[Effect]:
    """Effects of difficulty, easiest to hardest level, per cell of the other keys; empty without numbered levels."""
    levels, cells = by_level(outcomes, keys)
    found = []
    for cell, of_level in cells.items():
        if len(levels) > 1 and levels[0] in of_level and levels[-1] in of_level:
            easy, hard = (_by_seed(of_level[level]) for level in (levels[0], levels[-1]))
            if easy.keys() & hard.keys():
                found.append(_unpaired(cell, levels[0], levels[-1], easy, hard))
    return corrected(found)


def by_level(outcomes: Sequence[Outcome], keys: Sequence[str]) -> tuple[list[str], dict[str, dict[str, list[Outcome]]]]:
    """The levels from easy to hard, and the texts by cell of the other keys and by level.

    Empty without a key for difficulty, or if the names of its levels contain no numbers to order them by.
    """
    key = next((key for key in DIFFICULTY_KEYS if key in keys), None)
    levels = sorted({item.generation.groups.get(key, "") for item in outcomes}, key=natural) if key else []
    if key is None or not all(re.search(r"\d", level) for level in levels):
        return [], {}
    cells: dict[str, dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for item in outcomes:
        groups = item.generation.groups
        cell = " · ".join(groups.get(other, ABSENT) for other in keys if other != key) or "all"
        cells[cell][groups.get(key, "")].append(item)
    return levels, cells


def natural(text: str) -> list[tuple[float, str]]:
    """Sort key by the numbers in a text: depth_2 before depth_12, 0.25 before 1."""
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
    # Not the moderated test of `stats.comparisons`, as in sweep reports: a seed's value is a fraction whose sampling
    # variance is known, which is a floor of the variance over seeds and serves single seeds too. Fractions near 0 or 1
    # vary less than those near 1/2, so comparisons have no common variance to borrow.
    by_seed = {seed: mean(of_second[seed]) - mean(of_first[seed]) for seed in seeds}
    found = mean_over_seeds(
        list(by_seed.values()), [difference_variance(of_first[seed], of_second[seed]) for seed in seeds]
    )
    rates = (_rate(of_first, seeds), _rate(of_second, seeds))
    return Effect(where, first, second, *rates, *within_1(found.low, found.high), found.p_value, by_seed)


def _by_seed(outcomes: Sequence[Outcome]) -> dict[str, list[bool]]:
    hits: dict[str, list[bool]] = defaultdict(list)
    for item in outcomes:
        hits[item.generation.groups.get(SEED, "")].append(item.is_endless)
    return hits


def _rate(hits: Mapping[str, list[bool]], seeds: Sequence[str]) -> Rate:
    return Rate(sum(sum(hits[seed]) for seed in seeds), sum(len(hits[seed]) for seed in seeds))

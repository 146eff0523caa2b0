"""How sure is a difference in how often a model reasons without end?

A text is endless when it loops or does not stop within its budget. Differences of shares have Student's intervals over
seeds, the seeds' own differences being what varies; with one seed they are of its problems alone. Verdicts are
corrected for as many comparisons as stand in one table (Holm).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from statistics import mean
from typing import TypeVar

from lit_illada.stats.intervals import Rate
from lit_illada.stats.tests import holm

SEED = "seed"
LEVEL = 0.05
ABSENT = "–"  # the group of a text whose file says none


@dataclass(frozen=True)
class Effect:
    """The share of endless texts under `second`, less that under `first`: the mean of the seeds' differences.

    low, high: its 95 % interval, by itself. p_value: corrected for the others of its table; nan for a single seed where
    the others have several. by_seed: of each seed alone.
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


AnyEffect = TypeVar("AnyEffect", bound=Effect)


def corrected(effects: Sequence[AnyEffect], num_planned: int = 0) -> list[AnyEffect]:
    """With p values for all of them together. num_planned: where more were to be compared than could be."""
    is_over_seeds = any(len(effect.by_seed) > 1 for effect in effects)
    # beside comparisons of several models, one model's problems are no comparison
    told = {i: e.p_value for i, e in enumerate(effects) if len(e.by_seed) > 1 or not is_over_seeds}
    p = holm(told, max(num_planned, len(effects)))
    return [replace(effect, p_value=p.get(index, nan)) for index, effect in enumerate(effects)]


def within_1(low: float, high: float) -> tuple[float, float]:
    return max(low, -1.0), min(high, 1.0)


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{round(100 * difference):+d}"

"""How sure are rates, differences and times that were counted on few texts?"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt

import numpy as np
from scipy.special import ndtr, stdtr, stdtrit

from lit_illada.intervals import Z_95, wilson


@dataclass(frozen=True)
class Rate:
    """low, high: Wilson's 95 % interval."""

    hits: int
    tries: int

    @property
    def share(self) -> float:
        return self.hits / self.tries if self.tries else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.hits, self.tries)

    def __str__(self) -> str:
        if not self.tries:
            return "–"
        low, high = self.interval
        return f"{100 * self.share:.1f}% ({100 * low:.1f}–{100 * high:.1f})"


@dataclass(frozen=True)
class Paired:
    """The same prompts under two conditions. only_first, only_second: prompts that hit under one alone."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def num_pairs(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def changes(self) -> tuple[str, str]:
        """Of the prompts that hit under the first how many do not under the second, and the reverse."""
        of_hits, of_others = self.both + self.only_first, self.only_second + self.neither
        return f"{self.only_first} of {of_hits}", f"{self.only_second} of {of_others}"

    @property
    def p_value(self) -> float:
        """McNemar's test, exact: of the prompts that differ, is a half more?"""
        differing, fewer = self.only_first + self.only_second, min(self.only_first, self.only_second)
        return min(1.0, 2 * sum(comb(differing, count) for count in range(fewer + 1)) / 2**differing)


def mcnemar(pairs: Sequence[tuple[bool, bool]]) -> Paired:
    counts = {(first, second): 0 for first in (True, False) for second in (True, False)}
    for first, second in pairs:
        counts[bool(first), bool(second)] += 1
    return Paired(counts[True, True], counts[True, False], counts[False, True], counts[False, False])


@dataclass(frozen=True)
class Mean:
    """low, high: its 95 % interval. p_value: two-sided, of a true mean of 0."""

    value: float
    low: float
    high: float
    p_value: float


def mean_over_seeds(values: Sequence[float], variances: Sequence[float]) -> Mean:
    """Of one number a seed, each counted on few texts whose sampling variance is given: Student's t.

    A seed is a model tuned anew, so that the interval is about the next such model; texts of one model say less than
    there are of them. With two or three seeds it is wide, and a bootstrap that draws whole seeds would claim too much.
    The variance over seeds counts for no less than what sampling texts alone makes it: few texts may agree by chance. A
    single seed has that variance alone, and says nothing of other models.
    """
    k = len(values)
    mean = sum(values) / k
    between = sum((value - mean) ** 2 for value in values) / (k - 1) / k if k > 1 else 0.0
    error = sqrt(max(between, sum(variances) / k**2))
    half = (float(stdtrit(k - 1, 0.975)) if k > 1 else Z_95) * error
    t = -abs(mean) / error
    return Mean(mean, mean - half, mean + half, 2 * float(stdtr(k - 1, t) if k > 1 else ndtr(t)))


def share_variance(hits: Sequence[bool]) -> float:
    """Of a share's estimate, two hits and two misses added (Agresti and Coull): no text is certain."""
    n = len(hits) + 4
    share = (sum(hits) + 2) / n
    return share * (1 - share) / n


def difference_variance(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Of the difference of two independent shares, a hit and a miss added to each (Agresti and Caffo)."""
    shares = [(sum(hits) + 1) / (len(hits) + 2) for hits in (first, second)]
    return sum(p * (1 - p) / (len(hits) + 2) for p, hits in zip(shares, (first, second), strict=True))


def paired_variance(pairs: Paired) -> float:
    """Of the difference of two shares of the same prompts, a prompt added to those that hit under either alone (Bonett
    and Price)."""
    n = pairs.num_pairs + 2
    first, second = (pairs.only_first + 1) / n, (pairs.only_second + 1) / n
    return (first + second - (second - first) ** 2) / n


@dataclass(frozen=True)
class Survival:
    """Kaplan and Meier's estimate: from times[i] on, a share `survival[i]` has not looped; low, high: 95 %, by
    Greenwood's variance of log(−log S). at_risk: how many texts reached that length without a loop."""

    times: list[float]
    survival: list[float]
    low: list[float]
    high: list[float]
    at_risk: list[int]


def kaplan_meier(times: Sequence[float], is_event: Sequence[bool]) -> Survival:
    """times: of the onset, or where a text that does not loop ended (censored)."""
    when, happened = np.asarray(times, float), np.asarray(is_event, bool)
    survival, greenwood = 1.0, 0.0
    rows = [(0.0, 1.0, 1.0, 1.0, len(when))]
    for time in np.unique(when[happened]).tolist():
        at_risk, events = int((when >= time).sum()), int((happened & (when == time)).sum())
        survival *= 1 - events / at_risk
        low = high = survival
        if 0 < survival < 1:
            greenwood += events / (at_risk * (at_risk - events))
            spread = Z_95 * np.sqrt(greenwood) / abs(np.log(survival))
            low, high = survival ** np.exp(spread), survival ** np.exp(-spread)
        rows.append((time, survival, float(low), float(high), at_risk))
    if len(when) and when.max() > rows[-1][0]:  # the curve goes on to where the last text ends
        last = float(when.max())
        rows.append((last, *rows[-1][1:4], int((when >= last).sum())))
    times, shares, lows, highs, numbers = zip(*rows, strict=True)
    return Survival(list(times), list(shares), list(lows), list(highs), list(numbers))

"""How sure are rates, differences and times that were counted on few texts?"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

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
    def p_value(self) -> float:
        """McNemar's test, exact: of the prompts that differ, is a half more?"""
        differing, fewer = self.only_first + self.only_second, min(self.only_first, self.only_second)
        return min(1.0, 2 * sum(comb(differing, count) for count in range(fewer + 1)) / 2**differing)


def mcnemar(pairs: Sequence[tuple[bool, bool]]) -> Paired:
    counts = {(first, second): 0 for first in (True, False) for second in (True, False)}
    for first, second in pairs:
        counts[bool(first), bool(second)] += 1
    return Paired(counts[True, True], counts[True, False], counts[False, True], counts[False, False])


def cluster_bootstrap(
    hits: Sequence[bool], clusters: Sequence[Hashable], *, num_draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of a rate whose texts come in clusters (seeds, prompts), which are drawn whole."""
    names = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    index = np.array([names[name] for name in clusters])
    sums = np.bincount(index, np.asarray(hits, float))
    counts = np.bincount(index)
    drawn = np.random.default_rng(seed).integers(len(names), size=(num_draws, len(names)))
    rates = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def cluster_draws(clusters: Sequence[Sequence[Sequence[float]]], *, num_draws: int = 4000, seed: int = 0) -> np.ndarray:
    """(num_draws, k): bootstrap means of k samples that come in clusters, each a tuple of the samples' values in it.

    Clusters are drawn whole, all k samples alike, and then each sample's values within the cluster. One cluster is
    taken as it is, so that only its values are drawn.
    """
    random = np.random.default_rng(seed)
    sums = np.zeros((num_draws, len(clusters), len(clusters[0])))
    counts = np.zeros_like(sums)
    chosen = random.integers(len(clusters), size=(num_draws, len(clusters)))
    for index, samples in enumerate(clusters):
        rows, places = np.nonzero(chosen == index)
        for k, sample in enumerate(samples):
            values = np.asarray(sample, float)
            sums[rows, places, k] = values[random.integers(len(values), size=(len(rows), len(values)))].sum(1)
            counts[rows, places, k] = len(values)
    return sums.sum(1) / counts.sum(1)


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

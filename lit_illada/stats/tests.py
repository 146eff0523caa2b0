"""Hypothesis tests of paired observations, and Holm's correction for several of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from typing import TypeVar

from lit_illada.stats.intervals import Z_95

Key = TypeVar("Key")


def holm(p: Mapping[Key, float], num_comparisons: int) -> dict[Key, float]:
    """Holm's step-down corrected p values.

    num_comparisons: the planned number; those without a p value yet count as p = 1, so that no verdict becomes easier
    while results are missing.
    """
    corrected, so_far = {}, 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        so_far = max(so_far, min(1.0, (num_comparisons - rank) * p[name]))
        corrected[name] = so_far
    return corrected


@dataclass(frozen=True)
class Paired:
    """A 2 × 2 table of the same prompts under two conditions; each field counts prompts."""

    both: int  # hits under both conditions
    only_first: int
    only_second: int
    neither: int

    @property
    def num_pairs(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def changes(self) -> tuple[str, str]:
        """ "k of n": hits of the first condition that the second loses, and misses that it turns into hits."""
        of_hits, of_others = self.both + self.only_first, self.only_second + self.neither
        return f"{self.only_first} of {of_hits}", f"{self.only_second} of {of_others}"

    @property
    def p_value(self) -> float:
        """Two-sided p value of McNemar's exact test: the discordant prompts as a binomial sample of p = 1/2."""
        differing, fewer = self.only_first + self.only_second, min(self.only_first, self.only_second)
        return min(1.0, 2 * sum(comb(differing, count) for count in range(fewer + 1)) / 2**differing)


def mcnemar(pairs: Sequence[tuple[bool, bool]]) -> Paired:
    """The table of (first, second) outcomes, whose `p_value` is that of McNemar's exact test."""
    counts = {(first, second): 0 for first in (True, False) for second in (True, False)}
    for first, second in pairs:
        counts[bool(first), bool(second)] += 1
    return Paired(counts[True, True], counts[True, False], counts[False, True], counts[False, False])


def paired_variance(pairs: Paired) -> float:
    """Sampling variance of the difference of two proportions of the same prompts, one discordant prompt added each way
    (Bonett and Price, 2012)."""
    n = pairs.num_pairs + 2
    first, second = (pairs.only_first + 1) / n, (pairs.only_second + 1) / n
    return (first + second - (second - first) ** 2) / n


def paired_interval(pairs: Paired) -> tuple[float, float]:
    """95 % interval of the second proportion minus the first, of the same prompts (Bonett and Price, 2012)."""
    centre = (pairs.only_second - pairs.only_first) / (pairs.num_pairs + 2)
    half = Z_95 * sqrt(paired_variance(pairs))
    return max(-1.0, centre - half), min(1.0, centre + half)

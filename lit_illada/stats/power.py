"""Power of the moderated paired t test: the chance that a true difference gets a verdict.

Effects are in units of the standard deviation of the paired differences. The level is LEVEL / num_comparisons, what
Holm's method demands of the smallest p value; later ones face a lower bar, so the stated power is a lower bound.
"""

from bisect import bisect_left
from functools import cache
from math import sqrt

import numpy as np
from scipy.special import chdtri, nctdtrinc, ndtr, stdtrit

from lit_illada.stats.intervals import LEVEL
from lit_illada.stats.moderated import Array, moderate

POWER = 0.8
MOST_SEEDS = 10_000
_NUM_DRAWS = 2000


def power(effect: float, num_seeds: int, num_comparisons: int) -> float:
    """The chance of a verdict in the right direction, all comparisons having one true variance."""
    return float(ndtr(abs(effect) * sqrt(num_seeds) - _critical_errors(num_seeds, num_comparisons)).mean())


def visible_effect(num_seeds: int, num_comparisons: int) -> float:
    """The smallest effect that is detected with a power of POWER."""
    low, high = 0.0, 1.0
    while power(high, num_seeds, num_comparisons) < POWER:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, num_seeds, num_comparisons) >= POWER else (middle, high)
    return high


def seeds_needed(effect: float, num_comparisons: int) -> int | None:
    """The fewest seeds with a power of POWER; None for more than MOST_SEEDS."""

    def is_enough(n: int) -> bool:
        return power(effect, n, num_comparisons) >= POWER

    high = 2
    while high < MOST_SEEDS and not is_enough(high):
        high = min(2 * high, MOST_SEEDS)
    candidates = range(high // 2 + 1, high + 1)
    index = bisect_left(candidates, True, key=is_enough)
    return candidates[index] if index < len(candidates) else None


def seeds_needed_range(t: float, dof: float, num_seeds: int, num_comparisons: int) -> tuple[int, int | None] | None:
    """The seeds needed at both ends of the 95 % interval of the true effect, by the noncentral t distribution.

    t, dof: the observed statistic. None where the interval of the effect holds 0: no number of seeds can then be
    excluded. An upper end of None: more than MOST_SEEDS.
    """
    ends = [float(nctdtrinc(dof, 1 - tail, abs(t))) / sqrt(num_seeds) for tail in (LEVEL / 2, 1 - LEVEL / 2)]
    if not ends[0] > 0:
        return None
    # for a huge t scipy returns no upper end; so large an effect is detected with the fewest seeds
    fewest = seeds_needed(ends[1], num_comparisons) if np.isfinite(ends[1]) and ends[1] >= ends[0] else 2
    return fewest or MOST_SEEDS, seeds_needed(ends[0], num_comparisons)


@cache
def _critical_errors(num_seeds: int, num_comparisons: int) -> Array:
    """Critical value of a mean in true standard errors, for random draws (_NUM_DRAWS,) of all observed variances."""
    dof = num_seeds - 1
    draws = np.random.default_rng(0).chisquare(dof, (_NUM_DRAWS, num_comparisons)) / dof
    # quantiles instead of draws for the own variance, which matters most
    draws[:, 0] = chdtri(dof, (np.arange(_NUM_DRAWS) + 0.5) / _NUM_DRAWS) / dof
    variances, moderated_dof = moderate(draws, np.full(1, float(dof)))
    return stdtrit(moderated_dof[:, 0], 1 - LEVEL / (2 * num_comparisons)) * np.sqrt(variances[:, 0])

"""Which arms differ, how sure is that, and what could so few seeds have seen at all?

Arms are paired by seed: two runs of one seed see the same data in the same order from the same initial weights, so
their difference varies less than either. Each arm is tested against the baseline, and other pairs that are asked for,
by a two-sided paired t test (n − 1 degrees of freedom for n common seeds), and Holm's correction over all planned
comparisons keeps the chance of *any* false verdict in a sweep at LEVEL, whatever the dependence that a shared baseline
makes.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite, sqrt

from scipy.special import chdtr, nctdtr, stdtr, stdtrit

from lit_illada.stats.intervals import LEVEL, Estimate, estimate
from lit_illada.stats.tests import holm
from lit_illada.sweep.spec import Goal

POWER = 0.8
_MOST_SEEDS = 10_000
# differences equal to so many digits are one number rounded, not a sample of noise
_RELATIVE_NOISE = 1e-9


class Finding(StrEnum):
    """What the seeds say of a difference. constant: the same at every seed, so that there is no noise to test against.

    unpaired: fewer than two seeds in common.
    """

    BETTER = "better"
    WORSE = "worse"
    NOT_SEPARABLE = "not separable"
    CONSTANT = "constant"
    UNPAIRED = "unpaired"


Seed = int | None  # None: one run that stands for every seed


@dataclass(frozen=True)
class Comparison:
    """An arm against a reference on their common seeds.

    difference: arm − reference. p: None where there is nothing to test. p_holm: corrected. level: what a single
    comparison is tested at when it is the most significant of all.
    """

    seeds: tuple[Seed, ...]
    difference: Estimate | None
    p: float | None
    p_holm: float | None
    finding: Finding
    level: float

    @property
    def seeds_needed(self) -> int | None:
        """To see a true difference as large as the observed one with 80 % power; None: too many, or unknown."""
        if self.p is None or self.difference is None or self.difference.sd is None:
            return None
        return seeds_needed(self.difference.mean, self.difference.sd, self.level)

    @property
    def smallest_visible(self) -> float | None:
        """The true difference that these seeds would have shown with 80 % power."""
        if self.p is None or self.difference is None or self.difference.sd is None:
            return None
        return smallest_visible(self.difference.sd, self.difference.n, self.level)


def compare(
    values: Mapping[str, Mapping[Seed, float]], planned: Sequence[tuple[str, str]], goal: Goal
) -> dict[tuple[str, str], Comparison]:
    """Each (reference, arm). values: arm -> seed -> metric; what is not finite is left out.

    planned: all there will be, so that a verdict does not become easier while arms are missing.
    """
    pairs = {(first, second): paired(values.get(second, {}), values.get(first, {})) for first, second in planned}
    p = {both: value for both, found in pairs.items() if (value := paired_p(found)) is not None}
    corrected = holm(p, len(planned))
    level = LEVEL / max(1, len(planned))
    return {both: _comparison(found, p.get(both), corrected.get(both), goal, level) for both, found in pairs.items()}


Pairs = Mapping[Seed, tuple[float, float]]


def paired(values: Mapping[Seed, float], reference: Mapping[Seed, float]) -> Pairs:
    """(value, reference value) of every seed that has both, finite."""
    common = sorted(values.keys() & reference.keys(), key=lambda seed: (seed is None, seed))
    return {s: (values[s], reference[s]) for s in common if isfinite(values[s]) and isfinite(reference[s])}


def difference(pairs: Pairs) -> Estimate | None:
    return estimate([value - reference for value, reference in pairs.values()]) if pairs else None


def paired_p(pairs: Pairs) -> float | None:
    """Two-sided p of the paired t test; None below two pairs and where the differences do not vary."""
    found = difference(pairs)
    if found is None or found.sd is None or _is_constant(pairs, found.sd):
        return None
    return 2 * float(stdtr(found.n - 1, -abs(found.mean) * sqrt(found.n) / found.sd))


def power(difference: float, sd: float, n: int, level: float) -> float:
    """The chance that n pairs show a true difference at this level; sd: of the paired differences.

    By the noncentral t; the chance of a verdict the wrong way round is left out.
    """
    critical = float(stdtrit(n - 1, 1 - level / 2))
    centre = abs(difference) / sd * sqrt(n)
    below = float(nctdtr(n - 1, centre, critical))
    if isfinite(below):
        return 1 - below
    # scipy gives nan at some centres above 30, where t is the centre over a chi: its normal part is lost in that
    return float(chdtr(n - 1, (n - 1) * (centre / critical) ** 2))


def seeds_needed(difference: float, sd: float, level: float) -> int | None:
    """The fewest seeds with 80 % power; None for more than 10 000."""

    def is_enough(n: int) -> bool:
        return power(difference, sd, n, level) >= POWER

    high = 2
    while high < _MOST_SEEDS and not is_enough(high):
        high = min(2 * high, _MOST_SEEDS)
    candidates = range(high // 2 + 1, high + 1)
    index = bisect_left(candidates, True, key=is_enough)
    return candidates[index] if index < len(candidates) else None


def smallest_visible(sd: float, n: int, level: float) -> float:
    """The true difference that n seeds show with 80 % power."""
    low, high = 0.0, sd
    while power(high, sd, n, level) < POWER:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, sd, n, level) >= POWER else (middle, high)
    return high


def _comparison(pairs: Pairs, p: float | None, p_holm: float | None, goal: Goal, level: float) -> Comparison:
    found = difference(pairs)
    if found is None or found.sd is None:
        finding = Finding.UNPAIRED
    elif p is None or p_holm is None:
        finding = Finding.CONSTANT
    elif p_holm > LEVEL:
        finding = Finding.NOT_SEPARABLE
    else:
        finding = Finding.BETTER if (found.mean < 0) == (goal is Goal.LOWER) else Finding.WORSE
    return Comparison(tuple(pairs), found, p, p_holm, finding, level)


def _is_constant(pairs: Pairs, sd: float) -> bool:
    return sd <= _RELATIVE_NOISE * max(abs(number) for pair in pairs.values() for number in pair)

"""Confidence intervals (95 %) of proportions and of means over a few seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import erfc, sqrt

from lit_illada.runtime.lazy import LazyModule

scipy_special = LazyModule("scipy.special")  # takes half a second, and is needed for several seeds only
LEVEL = 0.05
Z_95 = 1.959963984540054


def wilson(num_hits: float, num_tries: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion; (0, 1) for no tries. A tie counts as half a hit.

    In closed form, as importing `scipy.stats` takes longer than most commands that need only this.
    """
    if num_tries == 0:
        return 0.0, 1.0
    p, weight = num_hits / num_tries, Z_95**2 / num_tries
    centre = (p + weight / 2) / (1 + weight)
    half = sqrt(p * (1 - p) * weight + weight**2 / 4) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Rate:
    """A proportion with Wilson's 95 % interval."""

    hits: int
    tries: int

    @property
    def share(self) -> float:
        """hits / tries, in [0, 1]; nan for no tries."""
        return self.hits / self.tries if self.tries else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.hits, self.tries)

    def __str__(self) -> str:
        if not self.tries:
            return "–"
        low, high = self.interval
        return f"{100 * self.share:.1f}% ({100 * low:.1f}–{100 * high:.1f})"


def share_variance(hits: Sequence[bool]) -> float:
    """Sampling variance of a proportion, two hits and two misses added (Agresti and Coull, 1998).

    The added counts keep the variance above 0 where all observations agree.
    """
    n = len(hits) + 4
    share = (sum(hits) + 2) / n
    return share * (1 - share) / n


def difference_variance(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Sampling variance of the difference of two independent proportions, a hit and a miss added to each (Agresti and
    Caffo, 2000)."""
    shares = [(sum(hits) + 1) / (len(hits) + 2) for hits in (first, second)]
    return sum(p * (1 - p) / (len(hits) + 2) for p, hits in zip(shares, (first, second), strict=True))


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    n: int  # seeds
    mean: float
    sd: float | None = None  # over seeds; None for a single seed
    low: float | None = None  # lower end of the 95 % interval; None for a single seed
    high: float | None = None  # upper end


def estimate(values: Sequence[float]) -> Estimate:
    """The mean with Student's 95 % interval."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return Estimate(n, mean)
    sd = sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(scipy_special.stdtrit(n - 1, 1 - LEVEL / 2)) * sd / sqrt(n)
    return Estimate(n, mean, sd, mean - half, mean + half)


@dataclass(frozen=True)
class Mean:
    """A mean over seeds whose values are themselves estimated from samples."""

    value: float
    low: float  # lower end of the 95 % interval
    high: float  # upper end
    p_value: float  # two-sided, of the hypothesis that the true mean is 0


def mean_over_seeds(values: Sequence[float], variances: Sequence[float]) -> Mean:
    """Student's interval and test of the mean of one number per seed.

    variances: the sampling variance of each value. The variance over seeds is taken to be no smaller than what sampling
    alone causes, since a few small samples can agree by chance. A single seed has the sampling variance alone, and its
    interval does not extend to other seeds. Seeds, not texts, are the unit: texts of one model are correlated. A
    bootstrap over two or three seeds would be far too narrow.
    """
    k = len(values)
    mean = sum(values) / k
    between = sum((value - mean) ** 2 for value in values) / (k - 1) / k if k > 1 else 0.0
    error = sqrt(max(between, sum(variances) / k**2))
    half = (float(scipy_special.stdtrit(k - 1, 0.975)) if k > 1 else Z_95) * error
    t = -abs(mean) / error
    return Mean(
        mean, mean - half, mean + half, 2 * float(scipy_special.stdtr(k - 1, t)) if k > 1 else erfc(-t / sqrt(2))
    )

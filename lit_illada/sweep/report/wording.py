"""Formats numbers and verdicts, with no more digits or certainty than the seeds support."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import floor, log10
from statistics import median

from lit_illada.stats.comparisons import Comparison, Finding
from lit_illada.stats.intervals import Estimate

MISSING = "–"


@dataclass(frozen=True)
class Unit:
    """Format of the values of a metric."""

    name: str
    """Unit of a value; empty if it has none."""
    of_difference: str
    """Unit of a difference between two values."""
    factor: float
    """Multiplier of printed values, 100 for percentages."""
    decimals: int
    """Digits after the decimal point."""

    def value(self, value: float | None) -> str:
        """A value without its unit."""
        return MISSING if value is None else _typeset(f"{self.factor * value:.{self.decimals}f}")

    def difference(self, value: float | None) -> str:
        """A difference with its sign, without its unit."""
        return MISSING if value is None else _typeset(f"{self.factor * value:+.{self.decimals}f}")

    def size(self, value: float) -> str:
        """Absolute difference with its unit."""
        return f"{abs(self.factor * value):.{self.decimals}f} {self.of_difference}".strip()

    def noise(self, value: float | None) -> str:
        """A noise floor without its unit: like `value`, but with at least one digit other than 0."""
        if not value:
            return self.value(value)
        decimals = max(self.decimals, -floor(log10(self.factor * value)))
        return f"{self.factor * value:.{decimals}f}"

    def is_possible(self, difference: float) -> bool:
        """Whether two values can differ by that much; two percentages differ by at most 100 points."""
        return self.name != "%" or abs(difference) <= 1

    def ends(self, estimate: Estimate | None, *, is_difference: bool = False) -> tuple[float, float] | None:
        """Ends of an interval, not multiplied; those of percentages are clipped to possible values."""
        if estimate is None or estimate.low is None or estimate.high is None:
            return None
        if self.name != "%":
            return estimate.low, estimate.high
        return max(estimate.low, -1.0 if is_difference else 0.0), min(estimate.high, 1.0)

    def interval(self, estimate: Estimate | None, *, is_difference: bool = False) -> str:
        """The `ends` of an interval as text."""
        ends = self.ends(estimate, is_difference=is_difference)
        return MISSING if ends is None else " to ".join(map(self.difference if is_difference else self.value, ends))


def unit_of(metric: str, estimates: Iterable[Estimate]) -> Unit:
    """Format of a metric, with two significant digits of the median half-width of the intervals."""
    words = f"_{metric.rpartition('/')[2]}_"
    name, of_difference, factor = next((unit for part, unit in _UNITS.items() if f"_{part}_" in words), ("", "", 1.0))
    halves = [
        factor * (estimate.high - estimate.low) / 2
        for estimate in estimates
        if estimate.low is not None and estimate.high is not None and estimate.low < estimate.high  # not constant
    ]
    typical = median(halves) if halves else 0.0
    decimals = 1 - floor(log10(typical)) if typical > 0 else 3
    return Unit(name, of_difference, factor, min(6, max(1 if factor > 1 else 2, decimals)))


# by whole words of a metric's name, the first that occurs: unit of a value, of a difference, and factor
_UNITS = {
    "nll_bound": ("nats/token", "nats/token", 1.0),
    "nats_per_token": ("nats/token", "nats/token", 1.0),
    "bits_per_byte": ("bits per byte", "bits per byte", 1.0),
    "exact_match": ("%", "points", 100.0),
    "accuracy_change": ("points", "points", 100.0),
    "accuracy": ("%", "points", 100.0),
    "rate": ("%", "points", 100.0),
    "share": ("%", "points", 100.0),
    "endless_rechecks": ("re-checks", "re-checks", 1.0),
    "endless": ("%", "points", 100.0),
    "looped": ("%", "points", 100.0),
    "nll": ("nats/token", "nats/token", 1.0),
}


def left_out(num_seeds: int, num_finished: int, metric: str) -> str:
    """Note on the finished seeds of an arm whose metric is NaN or infinite."""
    return f"{num_seeds} of {num_finished} seeds ended with a non-finite {metric} and are left out"


def verdict(
    comparison: Comparison | None, baseline: str, unit: Unit, *, is_same_run: bool = False, is_finite: bool = True
) -> str:
    """One sentence about the comparison of an arm with the baseline. is_finite: of every finished seed of the two."""
    if is_same_run:
        return f"same runs as {baseline}: the two do not differ in this stage"
    if (comparison is None or comparison.difference is None) and not is_finite:
        return f"no seed in common with {baseline} at which both are finite"
    if comparison is None or comparison.difference is None:
        return f"no finished seed in common with {baseline} yet"
    difference, n = comparison.difference, len(comparison.seeds)
    if comparison.finding is Finding.UNPAIRED:
        return f"one seed in common with {baseline}: no interval and no test"
    if comparison.finding is Finding.CONSTANT:
        if abs(difference.mean) * 10**unit.decimals * unit.factor < 0.5:
            return f"equal to {baseline} at all {n} seeds"
        return (
            f"differs from {baseline} by {unit.size(difference.mean)} at each of {n} seeds: without variance there "
            "is no test"
        )
    if comparison.finding is Finding.DESCRIPTIVE:
        return (
            f"{unit.difference(difference.mean)} {unit.of_difference}".rstrip()
            + f" (95\u00a0% interval {unit.interval(difference, is_difference=True)}), descriptive"
        )
    if comparison.finding is Finding.NOT_TESTED:
        return "not tested: the primary contrasts come first, and not all are separable"
    if comparison.finding is Finding.BELOW_NOISE:
        return f"{comparison.finding}: {unit.size(difference.mean)} is less than rounding alone changes a run"
    if comparison.finding is not Finding.NOT_SEPARABLE:
        return (
            f"{comparison.finding} than {baseline} by {unit.size(difference.mean)} "
            f"(95\u00a0% interval {_sizes(difference, unit)}, Holm {p_value(comparison.p_holm)})"
        )
    if comparison.smallest_visible is not None and not unit.is_possible(comparison.smallest_visible):
        return (
            f"not separable at {n} seeds, too few to find any difference of fractions "
            f"in {comparison.num_comparisons} tests"
        )
    return f"not separable at {n} seeds{_seeds_needed(comparison)}"


def _seeds_needed(comparison: Comparison) -> str:
    """Range of seeds needed; empty if the interval of the difference contains 0, which excludes no number of seeds."""
    needed = comparison.seeds_needed
    if needed is None:
        return ""
    low, high = needed
    if low == high:
        return f"; {low} seeds needed for a true difference within its interval"
    top = "more than 10 000" if high is None else str(high)
    return f"; {low} to {top} seeds needed for a true difference within its interval"


def p_value(p: float | None) -> str:
    """A p value, such as `p = 0.012`."""
    if p is None:
        return "p unknown"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def amount(value: float | None) -> str:
    """A count with a metric prefix, such as `4.92 M`."""
    if value is None:
        return MISSING
    for limit, letter in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {letter}"
    return f"{value:.3g}"


def _sizes(difference: Estimate, unit: Unit) -> str:
    """Interval of an absolute difference: `0.05 to 0.19`, with a negative end if it contains zero."""
    assert difference.low is not None
    assert difference.high is not None
    ends = sorted((difference.low, difference.high), key=abs)
    sign = 1 if difference.mean > 0 else -1
    return " to ".join(unit.value(sign * end) for end in ends)


def _typeset(text: str) -> str:
    """Use the minus sign U+2212, and no sign before zero."""
    return (text if text.strip("+-0.") else text.lstrip("+-")).replace("-", "−")

"""Effects of a metric beside the noise floor: power, equivalence, and the same contrast at half of the budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import variance

from lit_illada.stats.comparisons import Comparison, Finding, compare
from lit_illada.stats.intervals import LEVEL, Estimate
from lit_illada.stats.power import power
from lit_illada.sweep.report.collect import RunRecord, Sweep
from lit_illada.sweep.spec import Goal, Metric
from lit_illada.sweep.variants import replicates

_HALF, _TOLERANCE = 0.5, 0.1  # fraction of a run's steps, and how far from it a validation may lie


@dataclass(frozen=True)
class NoiseFloor:
    """Values of a metric in runs of one seed that differ in rounding only."""

    by_seed: dict[int, list[float]]  # the original, then its copies

    @property
    def num_replicates(self) -> int:
        """Number of copies."""
        return sum(len(values) - 1 for values in self.by_seed.values())

    @property
    def size(self) -> float:
        """√2 times the standard deviation within seeds (pooled): the typical difference that rounding makes."""
        return sqrt(2 * sum((len(v) - 1) * variance(v) for v in self.by_seed.values()) / self.num_replicates)


@dataclass(frozen=True)
class Effect:
    """A planned contrast on one metric. None: not measured, or not defined."""

    reference: str
    arm: str
    num_primary_contrasts: int  # contrasts that answer the question, with this one; 0: this one does not
    comparison: Comparison
    noise: NoiseFloor | None
    power: float | None  # for a true difference of equivalence_margin
    p_equivalent: float | None  # two one-sided tests within equivalence_margin, uncorrected
    half: Estimate | None  # arm − reference at half of the budget

    @property
    def is_direction_stable(self) -> bool | None:
        """Whether the effect has one sign at half and at the full budget."""
        full = self.comparison.difference
        return None if full is None or self.half is None else (full.mean < 0) == (self.half.mean < 0)

    @property
    def is_primary_contrast(self) -> bool:
        """Whether the effect answers the question of the sweep."""
        return self.num_primary_contrasts > 0

    @property
    def verdict(self) -> str:
        """Finding; for a primary contrast also `equivalent`, Bonferroni-corrected over the primary contrasts."""
        finding = self.comparison.finding
        is_equivalent = self.p_equivalent is not None and self.p_equivalent * self.num_primary_contrasts <= LEVEL
        if self.is_primary_contrast and is_equivalent and finding in (Finding.NOT_SEPARABLE, Finding.BELOW_NOISE):
            return "equivalent"
        return str(finding)


def noise_floor(sweep: Sweep, metric: Metric) -> NoiseFloor | None:
    """Finished rounding replicates beside their originals, with a finite metric; None without any."""
    by_seed: dict[int, list[float]] = {}
    for each in replicates(sweep.spec):
        pair = [sweep.of_arm(arm, metric.stage).get(each.seed) for arm in (sweep.spec.baseline, each.name)]
        values = [record.figures[metric.name] for record in pair if record and metric.name in record.figures]
        if len(values) == 2 and all(map(isfinite, values)):  # a NaN would make every comparison with the floor false
            by_seed.setdefault(each.seed, values[:1]).append(values[1])
    return NoiseFloor(by_seed) if by_seed else None


def effects(sweep: Sweep, metric: Metric, comparisons: Mapping[tuple[str, str], Comparison]) -> list[Effect]:
    """Every planned contrast of a metric, in the order of the spec, primary contrasts first."""
    spec, noise = sweep.spec, noise_floor(sweep, metric)
    is_primary_metric = metric == spec.metrics[0]
    arms = [arm.name for arm in spec.all_arms()]
    primary = spec.primary_pairs() if is_primary_metric else []
    halves = {arm: _at_half(sweep.of_arm(arm, metric.stage), metric.name) for arm in arms}
    at_half = compare(
        halves,
        spec.tested_pairs(),
        is_lower_better=metric.goal is Goal.LOWER,
        is_primary=False,
        controls=spec.cannot_learn,
    )
    margin = spec.equivalence_margin if is_primary_metric else None
    found = [
        Effect(
            reference=pair[0],
            arm=pair[1],
            num_primary_contrasts=len(primary) if pair in primary else 0,
            comparison=comparison,
            noise=noise,
            power=_power(comparison, margin),
            p_equivalent=comparison.p_equivalent(margin) if margin else None,
            half=at_half[pair].difference,
        )
        for pair, comparison in comparisons.items()
    ]
    return sorted(found, key=lambda effect: not effect.is_primary_contrast)


def _power(comparison: Comparison, margin: float | None) -> float | None:
    """Power for a true difference of the margin, if the moderated variance is the true one."""
    n = len(comparison.seeds)
    if not margin or not comparison.standard_error or n < 2:
        return None
    return power(margin / (comparison.standard_error * sqrt(n)), n, comparison.num_comparisons)


def _at_half(records: Mapping[int | None, RunRecord], name: str) -> dict[int | None, float]:
    """Value of each finished run's curve nearest to half of its steps, of two equally near ones the earlier."""
    values = {}
    for seed, record in records.items():
        curve, steps = record.curves.get(name), record.num_steps
        if record.figures and curve and steps:
            points = zip(curve.steps, curve.values, strict=True)
            distance, _, value = min((abs(step / steps - _HALF), step, value) for step, value in points)
            if distance <= _TOLERANCE:
                values[seed] = value
    return values

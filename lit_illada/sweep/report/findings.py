"""What does a sweep say, metric by metric: how good is each arm, and how does it compare with the baseline?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import isfinite

from lit_illada.stats.intervals import LEVEL, Estimate, estimate
from lit_illada.sweep.layout import RunState
from lit_illada.sweep.report.collect import RunRecord, Sweep
from lit_illada.sweep.report.statistics import (
    Comparison,
    compare,
    difference,
    paired,
    paired_p,
)
from lit_illada.sweep.report.wording import Unit, p_value, unit_of, verdict
from lit_illada.sweep.spec import Goal, Metric, SweepSpec


@dataclass(frozen=True)
class ArmFinding:
    """One arm by one metric. values: by seed, of finished runs. comparison: None for the baseline itself."""

    arm: str
    source: str
    is_baseline: bool
    records: dict[int | None, RunRecord]
    values: dict[int | None, float]
    estimate: Estimate | None
    comparison: Comparison | None
    verdict: str


@dataclass(frozen=True)
class PairFinding:
    """A comparison that the spec asks for beside those with the baseline: `second` less `first`."""

    first: str
    second: str
    comparison: Comparison
    verdict: str


@dataclass(frozen=True)
class Check:
    """Something the spec says must come out so. is_passed: None while there are too few results to tell."""

    text: str
    is_passed: bool | None


@dataclass(frozen=True)
class MetricFinding:
    """All arms by one metric, the best mean first, those without results last.

    num_runs, num_finished: of the runs that the metric is taken from.
    """

    metric: Metric
    unit: Unit
    arms: list[ArmFinding]
    pairs: list[PairFinding]
    checks: list[Check]
    num_runs: int
    num_finished: int

    @property
    def is_preliminary(self) -> bool:
        return self.num_finished < self.num_runs

    def of(self, arm: str) -> ArmFinding:
        return next(found for found in self.arms if found.arm == arm)


def find(sweep: Sweep, metric: Metric) -> MetricFinding:
    spec = sweep.spec
    records = {arm.name: sweep.of_arm(arm.name, metric.stage) for arm in spec.all_arms()}
    values = {arm: _values(of_seed, metric.name) for arm, of_seed in records.items()}
    comparisons = compare(values, spec.comparisons(), metric.goal)
    unit = unit_of(metric.name, [found.difference for found in comparisons.values() if found.difference])
    arms: list[ArmFinding] = []
    for arm in spec.all_arms():
        of_seed, comparison = records[arm.name], comparisons.get((spec.baseline, arm.name))
        is_same_run = _are_same_runs(records, spec.baseline, arm.name)
        is_baseline = arm.name == spec.baseline
        said = "the baseline" if is_baseline else verdict(comparison, spec.baseline, unit, is_same_run=is_same_run)
        finite = list(values[arm.name].values())
        arms.append(
            ArmFinding(
                arm=arm.name,
                source=arm.source,
                is_baseline=is_baseline,
                records=of_seed,
                values=values[arm.name],
                estimate=estimate(finite) if finite else None,
                comparison=None if is_baseline else comparison,
                verdict=said,
            )
        )
    pairs = []
    for first, second in spec.also_compare:
        comparison = comparisons[first, second]
        said = verdict(comparison, first, unit, is_same_run=_are_same_runs(records, first, second))
        pairs.append(PairFinding(first, second, comparison, said))
    sign = 1 if metric.goal is Goal.LOWER else -1
    arms.sort(key=lambda found: (found.estimate is None, sign * found.estimate.mean if found.estimate else 0.0))
    runs = {record.run.id: record for of_seed in records.values() for record in of_seed.values()}
    finished = sum(record.state is RunState.FINISHED for record in runs.values())
    checks = _checks(spec, metric, records, values, unit)
    return MetricFinding(metric, unit, arms, pairs, checks, len(runs), finished)


def grid(spec: SweepSpec, found: MetricFinding) -> tuple[list[str], list[str], list[list[float | None]]] | None:
    """(values of the first axis, of the second, means) of a sweep over two axes; None for any other sweep."""
    if len(spec.axes) != 2:
        return None
    rows, columns = ([value.name for value in axis] for axis in spec.axes.values())
    means = {arm.arm: arm.estimate.mean if arm.estimate else None for arm in found.arms}
    table = {(row, column): means[f"{row}+{column}"] for row, column in product(rows, columns)}
    return rows, columns, [[table[row, column] for column in columns] for row in rows]


def _values(of_seed: dict[int | None, RunRecord], name: str) -> dict[int | None, float]:
    found = {seed: record.figures[name] for seed, record in of_seed.items() if name in record.figures}
    return {seed: value for seed, value in found.items() if isfinite(value)}


Values = dict[str, dict[int | None, float]]
Records = dict[str, dict[int | None, RunRecord]]


def _are_same_runs(records: Records, one: str, other: str) -> bool:
    runs, of_other = ({record.run.id for record in records[arm].values()} for arm in (one, other))
    return runs == of_other


def _checks(spec: SweepSpec, metric: Metric, records: Records, values: Values, unit: Unit) -> list[Check]:
    # with the verdicts: all that a page says of one metric is false in one of twenty sweeps at most
    level = LEVEL / max(1, len(spec.comparisons()) + len(spec.equal_in_expectation))
    return [
        *(_agrees(pair, values, unit, level) for pair in spec.equal_in_expectation),
        *(_has_not_learnt(arm, spec.baseline, metric, records, values, unit) for arm in spec.cannot_learn),
    ]


def _agrees(pair: Sequence[str], values: Values, unit: Unit, level: float) -> Check:
    one, other = pair
    pairs = paired(values[other], values[one])
    found, p = difference(pairs), paired_p(pairs)
    what = f"{one} and {other} have the same expected objective"
    if found is None or p is None:
        return Check(f"{what}: too few seeds in common to check that they come out alike", None)
    seen = f"difference {unit.difference(found.mean)} ({unit.interval(found, is_difference=True)}), {p_value(p)}"
    if p > level:
        return Check(f"{what}: {seen}: not separable, as it should be", True)
    return Check(
        f"{what}, yet they are separated: {seen}. Either the implementation is wrong, or one of them learns better for "
        "its smaller variance: look before any verdict here is believed",
        False,
    )


def _has_not_learnt(arm: str, baseline: str, metric: Metric, records: Records, values: Values, unit: Unit) -> Check:
    """Against the cross-entropy of the training data's token frequencies on the scored tokens where the metric is the
    bound, else against the baseline. Two standard errors of the bound are allowed.
    """
    if not values[arm]:
        return Check(f"{arm} cannot learn: no finished run to check it with", None)
    mean = estimate(list(values[arm].values())).mean
    figures = [record.figures for record in records[arm].values() if "val/unigram_cross_entropy" in record.figures]
    slack = 0.0
    if metric.name == "val/nll_bound" and figures:
        limit, what = min(of_run["val/unigram_cross_entropy"] for of_run in figures), "the training frequencies"
        slack = 2 * max(of_run.get("val/nll_bound_stderr", 0.0) for of_run in figures)
    elif values[baseline]:
        limit, what = estimate(list(values[baseline].values())).mean, baseline
    else:
        return Check(f"{arm} cannot learn: {baseline} has no finished run to compare with", None)
    is_passed = mean >= limit - slack if metric.goal is Goal.LOWER else mean <= limit
    seen = f"{unit.value(mean)} {unit.name}, {what} {unit.value(limit)}"
    if is_passed:
        return Check(f"{arm} cannot learn context, and did not: {seen}", True)
    return Check(f"{arm} cannot learn context, yet it did: {seen}. The yardstick or the arm is wrong", False)

"""Evaluates a sweep by metric: means, comparisons with the baseline, and the checks of the spec."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import isfinite

from lit_illada.stats.comparisons import Comparison, Finding, compare
from lit_illada.stats.intervals import LEVEL, Estimate, estimate
from lit_illada.stats.tests import holm
from lit_illada.sweep.folder import RunState
from lit_illada.sweep.report.collect import RunRecord, Sweep
from lit_illada.sweep.report.effects import Effect, NoiseFloor, effects, noise_floor
from lit_illada.sweep.report.wording import Unit, left_out, p_value, unit_of, verdict
from lit_illada.sweep.spec import Goal, Metric, SweepSpec


@dataclass(frozen=True)
class ArmFinding:
    """Result of one arm on one metric."""

    arm: str
    source: str  # paper or code that its setting is taken from
    is_baseline: bool
    records: dict[int | None, RunRecord]  # by seed
    values: dict[int | None, float]  # by seed, of finished runs; those that are not finite are left out
    num_not_finite: int  # seeds of finished runs that are left out
    estimate: Estimate | None
    comparison: Comparison | None  # None for the baseline
    verdict: str


@dataclass(frozen=True)
class PairFinding:
    """A comparison from `also_compare`: `second` minus `first`."""

    first: str
    second: str
    comparison: Comparison
    verdict: str


@dataclass(frozen=True)
class Check:
    """An outcome that the spec predicts."""

    text: str
    is_passed: bool | None  # None: undecided


@dataclass(frozen=True)
class MetricFinding:
    """Results of all arms on one metric."""

    metric: Metric
    is_primary: bool  # carries verdicts; others are descriptive
    unit: Unit
    arms: list[ArmFinding]  # the best mean first, those without results last
    pairs: list[PairFinding]
    checks: list[Check]  # of the primary metric; else empty
    num_runs: int  # of the metric's stage
    num_finished: int
    noise: NoiseFloor | None = None  # None: no finished replicate
    effects: list[Effect] = field(default_factory=list)  # every planned contrast

    @property
    def is_preliminary(self) -> bool:
        """Whether some runs have not finished, or none is planned yet, as while a sweep tunes."""
        return self.num_runs == 0 or self.num_finished < self.num_runs

    def of(self, arm: str) -> ArmFinding:
        """Result of an arm."""
        return next(finding for finding in self.arms if finding.arm == arm)


def find(sweep: Sweep, metric: Metric) -> MetricFinding:
    """Compare all arms on a metric; only the primary metric gets verdicts and checks."""
    spec = sweep.spec
    records = {arm.name: sweep.of_arm(arm.name, metric.stage) for arm in spec.all_arms()}
    values = {arm: _values(of_seed, metric.name) for arm, of_seed in records.items()}
    not_finite = {arm: len(_figures(of_seed, metric.name)) - len(values[arm]) for arm, of_seed in records.items()}
    is_primary = metric == spec.metrics[0]
    is_lower_better = metric.goal is Goal.LOWER
    noise = noise_floor(sweep, metric)
    comparisons = compare(
        values,
        spec.tested_pairs(),
        is_lower_better=is_lower_better,
        is_primary=is_primary,
        tested_first=spec.primary_pairs(),
        controls=spec.cannot_learn,
        noise_floor=noise.size if noise else None,
    )
    unit = unit_of(metric.name, [comparison.difference for comparison in comparisons.values() if comparison.difference])

    def verdict_of(first: str, second: str) -> str:
        is_same_run = _are_same_runs(records, first, second)
        is_finite = not (not_finite[first] or not_finite[second])
        return verdict(comparisons.get((first, second)), first, unit, is_same_run=is_same_run, is_finite=is_finite)

    arms: list[ArmFinding] = []
    for arm in spec.all_arms():
        of_seed, comparison = records[arm.name], comparisons.get((spec.baseline, arm.name))
        is_baseline = arm.name == spec.baseline
        text = "the baseline" if is_baseline else verdict_of(spec.baseline, arm.name)
        if not_finite[arm.name]:
            text += f"; {left_out(not_finite[arm.name], not_finite[arm.name] + len(values[arm.name]), metric.name)}"
        finite = list(values[arm.name].values())
        arms.append(
            ArmFinding(
                arm=arm.name,
                source=arm.source,
                is_baseline=is_baseline,
                records=of_seed,
                values=values[arm.name],
                num_not_finite=not_finite[arm.name],
                estimate=estimate(finite) if finite else None,
                comparison=None if is_baseline else comparison,
                verdict=text,
            )
        )
    pairs = [
        PairFinding(first, second, comparisons[first, second], verdict_of(first, second))
        for first, second in spec.also_compare
    ]
    sign = 1 if is_lower_better else -1
    arms.sort(key=lambda finding: (finding.estimate is None, sign * finding.estimate.mean if finding.estimate else 0.0))
    runs = {record.run.id: record for of_seed in records.values() for record in of_seed.values()}
    finished = sum(record.state is RunState.FINISHED for record in runs.values())
    checks = _checks(spec, metric, records, values, comparisons, unit) if is_primary else []
    found = effects(sweep, metric, comparisons)
    return MetricFinding(metric, is_primary, unit, arms, pairs, checks, len(runs), finished, noise, found)


def grid(spec: SweepSpec, finding: MetricFinding) -> tuple[list[str], list[str], list[list[float | None]]] | None:
    """Values of both axes and the table of means, for a sweep over two axes; None for any other sweep."""
    if len(spec.axes) != 2:
        return None
    rows, columns = ([value.name for value in axis] for axis in spec.axes.values())
    means = {arm.arm: arm.estimate.mean if arm.estimate else None for arm in finding.arms}
    table = {(row, column): means[f"{row}+{column}"] for row, column in product(rows, columns)}
    return rows, columns, [[table[row, column] for column in columns] for row in rows]


def _figures(of_seed: dict[int | None, RunRecord], name: str) -> dict[int | None, float]:
    return {seed: record.figures[name] for seed, record in of_seed.items() if name in record.figures}


def _values(of_seed: dict[int | None, RunRecord], name: str) -> dict[int | None, float]:
    return {seed: value for seed, value in _figures(of_seed, name).items() if isfinite(value)}


Values = dict[str, dict[int | None, float]]
Records = dict[str, dict[int | None, RunRecord]]
Comparisons = Mapping[tuple[str, str], Comparison]


def _are_same_runs(records: Records, one: str, other: str) -> bool:
    runs, of_other = ({record.run.id for record in records[arm].values()} for arm in (one, other))
    return bool(runs) and runs == of_other


def _checks(
    spec: SweepSpec, metric: Metric, records: Records, values: Values, comparisons: Comparisons, unit: Unit
) -> list[Check]:
    return [
        *_equivalences(spec, comparisons, unit),
        *(_has_not_learnt(arm, spec.baseline, metric, records, values, unit) for arm in spec.cannot_learn),
    ]


def _equivalences(spec: SweepSpec, comparisons: Comparisons, unit: Unit) -> list[Check]:
    """One check per pair of `equal_in_expectation`: two one-sided tests and a two-sided one, whatever the verdicts.

    Holm's correction counts these pairs.
    """
    pairs = [(one, other) for one, other in spec.equal_in_expectation]
    by_pair = {pair: comparisons.get(pair) or comparisons[pair[1], pair[0]] for pair in pairs}
    margin = spec.equivalence_margin

    def corrected(p_of: Callable[[Comparison], float | None]) -> dict[tuple[str, str], float]:
        """Corrected p values; pairs without one still count in the correction."""
        return holm({pair: p for pair in pairs if (p := p_of(by_pair[pair])) is not None}, len(pairs))

    equivalent = corrected(lambda comparison: comparison.p_equivalent(margin) if margin else None)
    different = corrected(lambda comparison: comparison.p)
    return [
        _equivalence(pair, by_pair[pair], margin, equivalent.get(pair), different.get(pair), unit) for pair in pairs
    ]


def _equivalence(
    pair: tuple[str, str],
    comparison: Comparison,
    margin: float | None,
    p: float | None,
    p_different: float | None,
    unit: Unit,
) -> Check:
    """p, p_different: corrected p values of the test of equivalence and of that of a difference."""
    what = f"{pair[0]} and {pair[1]} have the same expected objective"
    if comparison.difference is None or comparison.p is None:
        return Check(f"{what}: not tested, since there are too few common seeds or no variance", None)
    seen = (
        f"difference {unit.difference(comparison.difference.mean)} "
        f"(95\u00a0% interval {unit.interval(comparison.difference, is_difference=True)})"
    )
    if margin is not None and p is not None and p <= LEVEL:
        return Check(f"{what}: equivalent within ±{unit.size(margin)} (TOST {p_value(p)}): {seen}", True)
    is_different = p_different is not None and p_different <= LEVEL
    if is_different and comparison.finding is not Finding.BELOW_NOISE:
        return Check(
            f"{what}, yet they differ (Holm {p_value(p_different)}): {seen}. Either the implementation is wrong, "
            "or one of them learns better because of its smaller variance: resolve this before relying on verdicts",
            False,
        )
    if margin is None:
        return Check(f"{what}: not separable, but equivalence is not tested without equivalence_margin: {seen}", None)
    return Check(
        f"{what}: undecided, neither different nor shown to be equivalent within ±{unit.size(margin)} "
        f"(TOST {p_value(p)}): {seen}",
        None,
    )


def _has_not_learnt(arm: str, baseline: str, metric: Metric, records: Records, values: Values, unit: Unit) -> Check:
    """Check that an arm has not learnt context.

    For the bound, the limit is the cross-entropy of the training data's token frequencies on the scored tokens, minus
    two standard errors; for other metrics it is the mean of the baseline.
    """
    if not values[arm]:
        return Check(f"{arm} cannot learn context: not checked, it has no finite result", None)
    mean = estimate(list(values[arm].values())).mean
    figures = [record.figures for record in records[arm].values() if "val/unigram_cross_entropy" in record.figures]
    tolerance = 0.0
    if metric.name == "val/nll_bound" and figures:
        limit = min(of_run["val/unigram_cross_entropy"] for of_run in figures)
        what = "token frequencies of the training data"
        tolerance = 2 * max(of_run.get("val/nll_bound_stderr", 0.0) for of_run in figures)
    elif values[baseline]:
        limit, what = estimate(list(values[baseline].values())).mean, baseline
    else:
        return Check(f"{arm} cannot learn context: not checked, {baseline} has no finite result", None)
    is_passed = mean >= limit - tolerance if metric.goal is Goal.LOWER else mean <= limit
    seen = f"{unit.value(mean)} {unit.name}, {what} {unit.value(limit)}"
    if is_passed:
        return Check(f"{arm} cannot learn context and has not learnt any: {seen}", True)
    return Check(f"{arm} cannot learn context, yet it has: {seen}. The validation metric or the arm is wrong", False)

"""Aggregates the seeds of each arm: learning curves, loss by mask ratio, gradient norms."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan

import numpy as np

from lit_illada.sweep.folder import RunState
from lit_illada.sweep.report.collect import RunRecord, Sweep
from lit_illada.sweep.report.events import Curve

RATIO_BINS = [f"{low / 10:.1f}-{(low + 1) / 10:.1f}" for low in range(10)]
RATIO_CENTRES = [0.05 + low / 10 for low in range(10)]
_BY_RATIO = "val_nll_by_ratio/"
# first fraction of a run whose gradients are ignored, since they mostly reflect the warm-up
_WARM_UP = 0.1


@dataclass(frozen=True)
class Band:
    """A mean over seeds with the range of the seeds, along x."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Course:
    """Learning curve of an arm."""

    band: Band | None  # over steps; None: no run has finished
    per_step: dict[str, float]  # forward passes of an alignment, tokens and FLOPs per step, to convert the x axis
    unfinished: list[tuple[list[float], list[float]]]  # (steps, values) of unfinished runs


@dataclass(frozen=True)
class Spread:
    """Quantiles (5, 50 and 95 %) of gradient norms over steps and seeds of an arm, without the first tenth."""

    low: float
    median: float
    high: float


def courses(sweep: Sweep, tag: str, stage: str, factor: float = 1.0) -> dict[str, Course]:
    """Learning curves of a tag by arm, for arms that have one. factor: multiplier of the values."""
    result = {}
    for arm in sweep.spec.all_arms():
        records = [record for record in sweep.of_arm(arm.name, stage).values() if tag in record.curves]
        if records:
            curves = {record.run.id: _scaled(record.curves[tag], factor) for record in records}
            finished = [curves[record.run.id] for record in records if record.state is RunState.FINISHED]
            others = [curves[record.run.id] for record in records if record.state is not RunState.FINISHED]
            unfinished = [(list(map(float, curve.steps)), list(curve.values)) for curve in others]
            result[arm.name] = Course(_band(finished), _per_step(records), unfinished)
    return result


def by_ratio(sweep: Sweep, stage: str) -> dict[str, Band]:
    """Final cross-entropy of masked tokens by mask ratio, nats/token, for arms with a finished run."""
    tables = {arm: np.array(list(rows.values())) for arm, rows in _ratio_rows(sweep, stage).items()}
    return {arm: _band_of(RATIO_CENTRES, table) for arm, table in tables.items()}


def by_ratio_to_baseline(sweep: Sweep, stage: str) -> dict[str, Band]:
    """`by_ratio` minus the baseline at the same seed, for arms with a seed in common."""
    rows = _ratio_rows(sweep, stage)
    reference = rows.get(sweep.spec.baseline, {})
    result = {}
    for arm, of_seed in rows.items():
        common = [seed for seed in of_seed if seed in reference]
        if common:
            table = np.array([np.subtract(of_seed[seed], reference[seed]) for seed in common])
            result[arm] = _band_of(RATIO_CENTRES, table)
    return result


def gradient_norms(sweep: Sweep, stage: str) -> dict[str, Spread]:
    """Spread of the gradient norm before clipping by arm, for arms with that curve."""
    result = {}
    for arm in sweep.spec.all_arms():
        curves = [record.curves.get("train/gradient_norm") for record in sweep.of_arm(arm.name, stage).values()]
        values = [value for curve in curves if curve for value in _after_warm_up(curve)]
        if values:
            low, middle, high = map(float, np.percentile(values, (5, 50, 95)))
            result[arm.name] = Spread(low, middle, high)
    return result


def _after_warm_up(curve: Curve) -> list[float]:
    begin = _WARM_UP * curve.steps[-1]
    return [value for step, value in zip(curve.steps, curve.values, strict=True) if step > begin and isfinite(value)]


def _ratio_rows(sweep: Sweep, stage: str) -> dict[str, dict[int | None, list[float]]]:
    """Cross-entropy in the ten bins of mask ratio by arm and seed; NaN for a bin without tokens."""
    rows: dict[str, dict[int | None, list[float]]] = {}
    for arm in sweep.spec.all_arms():
        for seed, record in sweep.of_arm(arm.name, stage).items():
            if any(name.startswith(_BY_RATIO) for name in record.figures):
                values = [record.figures.get(f"{_BY_RATIO}{bin_name}", nan) for bin_name in RATIO_BINS]
                rows.setdefault(arm.name, {})[seed] = values
    return rows


def _scaled(curve: Curve, factor: float) -> Curve:
    return replace(curve, values=array("d", [factor * value for value in curve.values]))


def _band(curves: Sequence[Curve]) -> Band | None:
    """Band over the steps that all curves share, or over the whole runs if these have unequal lengths; None without."""
    if not curves:
        return None
    ends = [curve.steps[-1] for curve in curves]
    if min(ends) > 0 and min(ends) < max(ends):
        return _band_to_the_end(curves)
    steps = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
    tables = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves]
    return _band_of(steps, np.array([[table[step] for step in steps] for table in tables])) if steps else None


def _band_to_the_end(curves: Sequence[Curve]) -> Band:
    """Band of runs of unequal lengths, such as those that a budget of passes ends, by the fraction of each run.

    Curves are interpolated linearly at every fraction at which one of them has a point; x is that fraction of the mean
    length.
    """
    own = [np.array(curve.steps) / curve.steps[-1] for curve in curves]
    fractions = np.unique(np.concatenate(own))
    fractions = fractions[fractions >= max(each[0] for each in own)]
    table = [np.interp(fractions, each, curve.values) for each, curve in zip(own, curves, strict=True)]
    mean_length = np.mean([curve.steps[-1] for curve in curves])
    return _band_of(fractions * mean_length, np.array(table))


def _band_of(x: Sequence[float], table: np.ndarray) -> Band:
    """Band of a table (seeds, points); points that are NaN for every seed are omitted."""
    has_value = ~np.isnan(table).all(axis=0)
    table = table[:, has_value]
    columns = (np.nanmean(table, axis=0), np.nanmin(table, axis=0), np.nanmax(table, axis=0))
    return Band(list(map(float, np.asarray(x)[has_value])), *(list(map(float, column)) for column in columns))


def _per_step(records: Sequence[RunRecord]) -> dict[str, float]:
    """Forward passes, tokens and FLOPs per step, over all runs of an arm."""
    amounts: dict[str, Callable[[RunRecord], float | None]] = {
        "forward passes": lambda record: record.figures.get("perf/forwards"),
        "tokens": lambda record: record.tokens,
        "FLOPs": lambda record: record.flops,
    }
    result = {}
    for name, amount in amounts.items():
        known = [(total, r.num_steps) for r in records if (total := amount(r)) is not None and r.num_steps]
        if known:
            result[name] = sum(total for total, _ in known) / sum(steps for _, steps in known)
    return result

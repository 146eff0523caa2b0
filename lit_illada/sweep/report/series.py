"""Series of an arm over its seeds: learning curves, loss by mask ratio, gradient norms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, nan

import numpy as np

from lit_illada.sweep.folder import RunState
from lit_illada.sweep.report.collect import RunRecord, Sweep
from lit_illada.sweep.report.events import Curve

RATIO_BINS = [f"{low / 10:.1f}-{(low + 1) / 10:.1f}" for low in range(10)]
RATIO_CENTRES = [0.05 + low / 10 for low in range(10)]
_BY_RATIO = "val_nll_by_ratio/"
# fraction of a run whose gradients are ignored: warm-up says little about an arm
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
    per_step: dict[str, float]  # tokens and FLOPs per step, for the other x axes
    unfinished: list[tuple[list[float], list[float]]]  # (steps, values) of unfinished runs


@dataclass(frozen=True)
class Spread:
    """Quantiles (5, 50, 95 %) of gradient norms over steps and seeds of an arm, the first tenth omitted."""

    low: float
    median: float
    high: float


def courses(sweep: Sweep, tag: str, stage: str) -> dict[str, Course]:
    """Learning curves by arm, of arms with that tag."""
    found = {}
    for arm in sweep.spec.all_arms():
        records = [record for record in sweep.of_arm(arm.name, stage).values() if tag in record.curves]
        if records:
            finished = [record.curves[tag] for record in records if record.state is RunState.FINISHED]
            others = [record.curves[tag] for record in records if record.state is not RunState.FINISHED]
            unfinished = [(list(map(float, curve.steps)), list(curve.values)) for curve in others]
            found[arm.name] = Course(_band(finished), _per_step(records), unfinished)
    return found


def by_ratio(sweep: Sweep, stage: str) -> dict[str, Band]:
    """The final cross-entropy of masked tokens by mask ratio, of the arms with a finished run."""
    tables = {arm: np.array(list(rows.values())) for arm, rows in _ratio_rows(sweep, stage).items()}
    return {arm: _band_of(RATIO_CENTRES, table) for arm, table in tables.items()}


def by_ratio_to_baseline(sweep: Sweep, stage: str) -> dict[str, Band]:
    """The same less the baseline's of the same seed, of the arms with a seed in common with it."""
    rows = _ratio_rows(sweep, stage)
    reference = rows.get(sweep.spec.baseline, {})
    found = {}
    for arm, of_seed in rows.items():
        common = [seed for seed in of_seed if seed in reference]
        if common:
            table = np.array([np.subtract(of_seed[seed], reference[seed]) for seed in common])
            found[arm] = _band_of(RATIO_CENTRES, table)
    return found


def gradient_norms(sweep: Sweep, stage: str) -> dict[str, Spread]:
    found = {}
    for arm in sweep.spec.all_arms():
        curves = [record.curves.get("train/gradient_norm") for record in sweep.of_arm(arm.name, stage).values()]
        values = [value for curve in curves if curve for value in _after_warm_up(curve)]
        if values:
            low, middle, high = map(float, np.percentile(values, (5, 50, 95)))
            found[arm.name] = Spread(low, middle, high)
    return found


def _after_warm_up(curve: Curve) -> list[float]:
    begin = _WARM_UP * curve.steps[-1]
    return [value for step, value in zip(curve.steps, curve.values, strict=True) if step > begin and isfinite(value)]


def _ratio_rows(sweep: Sweep, stage: str) -> dict[str, dict[int | None, list[float]]]:
    """By arm and seed: the ten values, NaN in a bin that no token fell into."""
    rows: dict[str, dict[int | None, list[float]]] = {}
    for arm in sweep.spec.all_arms():
        for seed, record in sweep.of_arm(arm.name, stage).items():
            if any(name.startswith(_BY_RATIO) for name in record.figures):
                values = [record.figures.get(f"{_BY_RATIO}{bin_name}", nan) for bin_name in RATIO_BINS]
                rows.setdefault(arm.name, {})[seed] = values
    return rows


def _band(curves: Sequence[Curve]) -> Band | None:
    """Over the steps that all have."""
    if not curves:
        return None
    steps = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
    tables = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves]
    return _band_of(steps, np.array([[table[step] for step in steps] for table in tables])) if steps else None


def _band_of(x: Sequence[float], table: np.ndarray) -> Band:
    """Of rows of seeds; places where every seed has NaN are left out."""
    kept = ~np.isnan(table).all(axis=0)
    table = table[:, kept]
    columns = (np.nanmean(table, axis=0), np.nanmin(table, axis=0), np.nanmax(table, axis=0))
    return Band(list(map(float, np.asarray(x)[kept])), *(list(map(float, column)) for column in columns))


def _per_step(records: Sequence[RunRecord]) -> dict[str, float]:
    """Tokens, FLOPs and seconds of a step, by what every run of the arm tells of itself."""
    amounts: dict[str, Callable[[RunRecord], float | None]] = {
        "tokens": lambda record: record.tokens,
        "FLOPs": lambda record: record.flops,
    }
    found = {}
    for name, amount in amounts.items():
        rates = [amount(r) / r.num_steps for r in records if amount(r) is not None and r.num_steps]  # type: ignore[operator]
        if rates:
            found[name] = sum(rates) / len(rates)
    return found

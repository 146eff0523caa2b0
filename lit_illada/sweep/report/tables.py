"""Writes the tables of a report as CSV and Parquet: one row per arm, per run, and per point of a curve."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from lit_illada.stats.comparisons import Comparison
from lit_illada.sweep.report.collect import RunRecord, Sweep
from lit_illada.sweep.report.findings import MetricFinding
from lit_illada.sweep.variants import Trial, read_choice, read_failed, trials

Row = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """Cost of the runs of a stage, as means over the finished runs. None: not measured."""

    arms: list[str]  # arms that share the runs
    stage: str
    num_runs: int  # finished runs
    elapsed_s: float | None
    tokens_per_s: float | None
    tokens: float | None
    flops: float | None
    memory_bytes: float | None  # the maximum


def costs(sweep: Sweep) -> list[Cost]:
    """One row per stage and group of arms that share their runs."""
    rows = []
    for stage in sweep.spec.stages:
        for arms in sweep.sharing(stage.name):
            records = [record for record in sweep.of_arm(arms[0], stage.name).values() if record.figures]
            if records:
                rows.append(_cost(arms, stage.name, records))
    return rows


def write_tables(folder: Path, sweep: Sweep, finding: Sequence[MetricFinding]) -> None:
    """Write arms.csv, effects.csv, runs.csv, runs.parquet and curves.parquet.

    Also pairs.csv for a sweep with also_compare, and tuning.csv for one with tuning runs.
    """
    runs = _table([_run_row(record, sweep.folder.path) for record in sweep.records])
    pa.csv.write_csv(_table([row for finding in finding for row in _arm_rows(finding)]), folder / "arms.csv")
    if effects := [row for each in finding for row in _effect_rows(each, sweep)]:
        pa.csv.write_csv(_table(effects), folder / "effects.csv")
    if sweep.spec.also_compare:
        pa.csv.write_csv(_table([row for finding in finding for row in _pair_rows(finding)]), folder / "pairs.csv")
    if tuned := tuning_rows(sweep):
        pa.csv.write_csv(_table(tuned), folder / "tuning.csv")
    pa.csv.write_csv(runs, folder / "runs.csv")
    pa.parquet.write_table(runs, folder / "runs.parquet")
    pa.parquet.write_table(_curves(sweep), folder / "curves.parquet")


def _arm_rows(finding: MetricFinding) -> list[Row]:
    rows = []
    for arm in finding.arms:
        mean = arm.estimate
        rows.append(
            {
                "metric": finding.metric.name,
                "stage": finding.metric.stage,
                "goal": finding.metric.goal.value,
                "is_primary": finding.is_primary,
                "arm": arm.arm,
                "is_baseline": arm.is_baseline,
                "num_seeds": len(arm.values),
                "mean": mean.mean if mean else None,
                "sd": mean.sd if mean else None,
                "low_95": mean.low if mean else None,
                "high_95": mean.high if mean else None,
                **_compared(arm.comparison),
                "verdict": arm.verdict,
                "is_preliminary": finding.is_preliminary,
                "source": arm.source,
                "runs": " ".join(record.run.id for record in arm.records.values()),
            }
        )
    return rows


def tuning_rows(sweep: Sweep) -> list[Row]:
    """One row per arm and value of the tuned key with a finished run, or that failed; empty without tuning."""
    spec = sweep.spec
    if spec.tune is None:
        return []
    chosen, failed = read_choice(sweep.folder, spec) or {}, read_failed(sweep.folder, spec)
    tried = trials(spec, sweep.folder, [record.run for record in sweep.records])
    nothing = Trial([], 0)
    return [
        {
            "arm": arm,
            "key": spec.tune.key,
            "value": value,
            "metric": spec.metrics[0].name,
            "mean": trial.mean if trial.figures else None,
            "num_seeds": len(trial.figures),
            "is_chosen": chosen.get(arm) == value,
            "is_failed": value in failed.get(arm, []),
        }
        for arm, of_value in tried.items()
        for value in spec.tune.values
        if (trial := of_value.get(value, nothing)).figures or value in failed.get(arm, [])
    ]


def _effect_rows(finding: MetricFinding, sweep: Sweep) -> list[Row]:
    """One row per planned contrast; none for a sweep of one arm."""
    return [
        {
            "metric": finding.metric.name,
            "stage": finding.metric.stage,
            "goal": finding.metric.goal.value,
            "is_primary": finding.is_primary,
            "reference": effect.reference,
            "arm": effect.arm,
            "is_primary_contrast": effect.is_primary_contrast,
            "num_pairs": len(effect.comparison.seeds),
            "effect": full.mean if (full := effect.comparison.difference) else None,
            "low_95": full.low if full else None,
            "high_95": full.high if full else None,
            "p": effect.comparison.p,
            "p_holm": effect.comparison.p_holm,
            "noise_floor": effect.noise.size if effect.noise else None,
            "num_replicates": effect.noise.num_replicates if effect.noise else 0,
            "smallest_effect": sweep.spec.equivalence_margin if finding.is_primary else None,
            "power": effect.power,
            "p_equivalent": effect.p_equivalent,
            "verdict": effect.verdict,
            "half_effect": effect.half.mean if effect.half else None,
            "half_low_95": effect.half.low if effect.half else None,
            "half_high_95": effect.half.high if effect.half else None,
            "direction_stable": _yes_no(effect.is_direction_stable),
            "is_preliminary": finding.is_preliminary,
        }
        for effect in finding.effects
    ]


def _yes_no(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def _pair_rows(finding: MetricFinding) -> list[Row]:
    return [
        {
            "metric": finding.metric.name,
            "stage": finding.metric.stage,
            "goal": finding.metric.goal.value,
            "is_primary": finding.is_primary,
            "first": pair.first,
            "second": pair.second,
            **_compared(pair.comparison),
            "verdict": pair.verdict,
            "is_preliminary": finding.is_preliminary,
        }
        for pair in finding.pairs
    ]


def _compared(comparison: Comparison | None) -> Row:
    """Columns of a comparison. None: the baseline."""
    difference = comparison.difference if comparison else None
    needed = comparison.seeds_needed if comparison else None
    return {
        "num_pairs": len(comparison.seeds) if comparison else None,
        "difference": difference.mean if difference else None,
        "difference_low_95": difference.low if difference else None,
        "difference_high_95": difference.high if difference else None,
        "standard_error": comparison.standard_error if comparison else None,
        "dof": comparison.dof if comparison else None,
        "p": comparison.p if comparison else None,
        "p_holm": comparison.p_holm if comparison else None,
        "finding": comparison.finding.value if comparison else "baseline",
        "seeds_needed_low": needed[0] if needed else None,
        "seeds_needed_high": needed[1] if needed else None,
        "smallest_visible": comparison.smallest_visible if comparison else None,
    }


def _run_row(record: RunRecord, folder: Path) -> Row:
    """The row of a run. Paths are relative to the sweep's folder, so that a published table names no other folder."""
    run, origin = record.run, record.provenance
    return {
        "run": run.id,
        "stage": run.stage,
        "arms": "; ".join(run.arms),
        "seed": run.seed,
        "state": record.state.value,
        "parent": run.parent,
        "config": os.path.relpath(origin.config, folder),
        "commit": " ".join(origin.commits),
        "data_sha256": " ".join(origin.data_sha256),
        "checkpoint": os.path.relpath(origin.checkpoint, folder) if origin.checkpoint else None,
        "checkpoint_step": origin.checkpoint_step,
        "elapsed_s": record.elapsed_s,
        "memory_bytes": record.memory_bytes,
        "tokens": record.tokens,
        "flops": record.flops,
        **{name: float(value) for name, value in sorted(record.figures.items())},
    }


def _table(rows: list[Row]) -> pa.Table:
    """Table with the columns of all rows in order of first occurrence; missing cells are null."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _curves(sweep: Sweep) -> pa.Table:
    """Long format: one row per point of a curve."""
    parts = [
        pa.table(
            {
                "run": pa.array([record.run.id] * len(curve)).dictionary_encode(),
                "tag": pa.array([tag] * len(curve)).dictionary_encode(),
                "seed": pa.array([record.run.seed] * len(curve), pa.int64()),
                "step": pa.array(curve.steps, pa.int64()),
                "value": pa.array(curve.values, pa.float64()),
            }
        )
        for record in sweep.records
        for tag, curve in record.curves.items()
    ]
    return pa.concat_tables(parts).unify_dictionaries() if parts else pa.table({"run": pa.array([], pa.string())})


def _cost(arms: list[str], stage: str, records: Sequence[RunRecord]) -> Cost:
    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    return Cost(
        arms=arms,
        stage=stage,
        num_runs=len(records),
        elapsed_s=mean([record.elapsed_s for record in records]),
        tokens_per_s=mean([_tokens_per_s(record) for record in records]),
        tokens=mean([record.tokens for record in records]),
        flops=mean([record.flops for record in records]),
        memory_bytes=max((r.memory_bytes for r in records if r.memory_bytes is not None), default=None),
    )


def _tokens_per_s(record: RunRecord) -> float | None:
    """Mean training throughput of a run, without validation."""
    tokens, elapsed_s = record.figures.get("perf/tokens"), record.figures.get("perf/elapsed_s")
    return tokens / elapsed_s if tokens and elapsed_s else None

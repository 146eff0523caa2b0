"""Runs beside those of the arms: tuning runs, which choose a value for each arm, and rounding replicates."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from statistics import mean
from types import MappingProxyType
from typing import Any

from lit_illada.errors import UserError
from lit_illada.runtime.files import write_atomically
from lit_illada.sweep.folder import PlannedRun, SweepFolder, read_record
from lit_illada.sweep.spec import Arm, Command, Goal, SweepSpec

_NONE: Mapping[str, Sequence[float]] = MappingProxyType({})


@dataclass(frozen=True)
class Replicate:
    """The baseline again at a seed, with a smaller micro-batch."""

    name: str  # in the place of an arm's
    seed: int
    divisor: int  # of the baseline's rows per micro-batch


def replicates(spec: SweepSpec) -> list[Replicate]:
    """Rounding replicates of a sweep, one seed after the other."""
    number = spec.noise_floor.replicates if spec.noise_floor else 0
    n = len(spec.seeds)
    return [
        Replicate(f"{spec.baseline}, rounding {index + 1}", spec.seeds[index % n], 2 ** (1 + index // n))
        for index in range(number)
    ]


def replicate_arm(spec: SweepSpec, replicate: Replicate, baseline: Arm, stage: str, micro_batch_rows: int) -> Arm:
    """Arm of a replicate. stage: the first that trains. Raises UserError for a micro-batch that cannot be divided."""
    rows, rest = divmod(micro_batch_rows, replicate.divisor)
    if rest or not rows:
        raise UserError(
            f"noise_floor.replicates: {spec.baseline!r} has trainer.micro_batch_rows={micro_batch_rows}, which "
            f"{replicate.name!r} cannot divide by {replicate.divisor}: name fewer replicates, or more seeds"
        )
    return with_override(replace(baseline, name=replicate.name), stage, f"trainer.micro_batch_rows={rows}")


def first_training(spec: SweepSpec, arm: Arm) -> str:
    """Name of the first stage of an arm that trains. Raises UserError if none does."""
    stages = [stage.name for stage in spec.stages_of(arm) if stage.command is not Command.SCORE]
    if not stages:
        raise UserError("noise_floor: the sweep trains nothing, so no rounding can be replicated; set it to null")
    return stages[0]


def tuning_arms(spec: SweepSpec, arm: Arm) -> dict[float, Arm]:
    """One arm per value of the tuned key; empty without tuning."""
    values = spec.tune.values if spec.tune else []
    return {value: replace(with_value(spec, arm, value), name=tuning_name(spec, arm.name, value)) for value in values}


def tuning_name(spec: SweepSpec, arm: str, value: float) -> str:
    """Name of an arm at a value of the tuned key, such as `cosine, learning_rate=0.003`."""
    assert spec.tune is not None
    return f"{arm}, {spec.tune.key.rpartition('.')[2]}={value:g}"


def with_value(spec: SweepSpec, arm: Arm, value: float) -> Arm:
    """Arm with a value of the tuned key."""
    assert spec.tune is not None
    assert spec.tuned_stage is not None
    return with_override(arm, spec.tuned_stage, f"{spec.tune.key}={value!r}")


def with_override(arm: Arm, stage: str, override: str) -> Arm:
    """Arm with one more override of a stage."""
    return replace(arm, overrides={**arm.overrides, stage: [*arm.overrides.get(stage, []), override]})


def tuning_runs(spec: SweepSpec, runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    """Runs that the tuning needs, in their order."""
    names = {arm.name for each in spec.all_arms() for arm in tuning_arms(spec, each).values()}
    return [run for run in runs if names & set(run.arms)]


def is_tuning(spec: SweepSpec, runs: Sequence[PlannedRun]) -> bool:
    """Whether a plan holds tuning runs only, as it does until a value is chosen for every arm."""
    return spec.tune is not None and len(tuning_runs(spec, runs)) == len(runs)


@dataclass(frozen=True)
class Trial:
    """Tuning runs of an arm at one value of the tuned key, at the stage of the primary metric."""

    figures: list[float]  # of the finished runs
    num_runs: int  # planned

    @property
    def mean(self) -> float:
        """Mean over the finished runs, of which there must be one."""
        return mean(self.figures)

    @property
    def is_complete(self) -> bool:
        """Whether the runs of all seeds have finished, so that the mean can be compared with others."""
        return len(self.figures) == self.num_runs > 0


def trials(spec: SweepSpec, folder: SweepFolder, runs: Iterable[PlannedRun]) -> dict[str, dict[float, Trial]]:
    """Planned tuning runs by arm and value of the tuned key."""
    metric, found = spec.metrics[0], dict[str, list[float | None]]()
    for run in tuning_runs(spec, runs):
        if run.stage == metric.stage:
            is_done = folder.run_folder(run).done.exists()
            end = (read_record(folder.run_folder(run).summary) or {}).get("end", {}) if is_done else {}
            for arm in run.arms:
                found.setdefault(arm, []).append(end.get(metric.name))
    return {
        arm.name: {
            value: Trial([float(figure) for figure in figures if figure is not None], len(figures))
            for value, tried in tuning_arms(spec, arm).items()
            if (figures := found.get(tried.name))
        }
        for arm in spec.all_arms()
    }


def tuning_means(
    spec: SweepSpec, folder: SweepFolder, runs: Iterable[PlannedRun], failed: Mapping[str, Sequence[float]] = _NONE
) -> dict[str, dict[float, float]]:
    """Mean of the primary metric by arm and value of the tuned key, where the runs of all seeds have finished.

    failed: values to leave out.
    """
    return {
        arm: {v: trial.mean for v, trial in of_value.items() if trial.is_complete and v not in failed.get(arm, ())}
        for arm, of_value in trials(spec, folder, runs).items()
    }


def failed_values(spec: SweepSpec, unfinished: Iterable[PlannedRun]) -> dict[str, list[float]]:
    """Values of the tuned key, by arm, with a run among those that cannot finish."""
    names = {arm for run in unfinished for arm in run.arms}
    of_arm = {
        arm.name: [value for value, tried in tuning_arms(spec, arm).items() if tried.name in names]
        for arm in spec.all_arms()
    }
    return {arm: values for arm, values in of_arm.items() if values}


def without_failed(spec: SweepSpec, folder: SweepFolder, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The runs without those of the tuning at values that have failed, which are not tried again."""
    failed = read_failed(folder, spec)
    names = {tuning_name(spec, arm, value) for arm, values in failed.items() for value in values}
    return [run for run in runs if not names.issuperset(run.arms)]


def choose(spec: SweepSpec, means: Mapping[str, Mapping[float, float]]) -> dict[str, float]:
    """Best value of the tuned key by arm. Raises UserError for an arm without a finite mean at any value."""
    assert spec.tune is not None
    sign = 1 if spec.metrics[0].goal is Goal.LOWER else -1
    chosen = {}
    for arm, of_value in means.items():
        finite = {value: sign * figure for value, figure in of_value.items() if isfinite(figure)}
        if not finite:
            tried = ", ".join(f"{value:g}" for value in spec.tune.values)
            raise UserError(
                f"arm {arm!r}: at no value of tune.values ({tried}) have the runs of all tune.seeds finished with a "
                f"finite {spec.metrics[0].name}: name other values"
            )
        chosen[arm] = min(finite, key=lambda value: finite[value])
    return chosen


def write_choice(
    spec: SweepSpec,
    folder: SweepFolder,
    means: Mapping[str, Mapping[float, float]],
    failed: Mapping[str, Sequence[float]] = _NONE,
) -> dict[str, float]:
    """Write tuning.json: the chosen value of each arm, the means behind it and the failed values. Returns the choice.

    means: over all seeds. failed: values with a failed run, such as a learning rate at which training diverges.
    """
    chosen = choose(spec, means)
    arms = {
        arm: {
            "chosen": value,
            "means": {f"{v:g}": m for v, m in means[arm].items()},
            "failed": list(failed.get(arm, [])),
        }
        for arm, value in chosen.items()
    }
    record = {**_settings(spec), "arms": arms}
    write_atomically(folder.tuned, json.dumps(record, indent=1) + "\n")
    return chosen


def read_choice(folder: SweepFolder, spec: SweepSpec) -> dict[str, float] | None:
    """Chosen value of each arm from tuning.json; None before the tuning has ended, or if it had other settings."""
    chosen = {arm: float(of_arm["chosen"]) for arm, of_arm in _read_arms(folder, spec).items()}
    return chosen if chosen.keys() >= {arm.name for arm in spec.all_arms()} and chosen else None


def read_failed(folder: SweepFolder, spec: SweepSpec) -> dict[str, list[float]]:
    """Failed values of each arm from tuning.json; empty where `read_choice` gives None."""
    if read_choice(folder, spec) is None:
        return {}
    return {arm: list(map(float, of_arm.get("failed", []))) for arm, of_arm in _read_arms(folder, spec).items()}


def _read_arms(folder: SweepFolder, spec: SweepSpec) -> dict[str, Any]:
    """Entries of tuning.json by arm; empty without one of this spec's settings."""
    record = read_record(folder.tuned)
    if record is None or spec.tune is None:
        return {}
    if any(record.get(key, value) != value for key, value in _settings(spec).items()):
        return {}
    return dict(record["arms"])


def _settings(spec: SweepSpec) -> dict[str, Any]:
    """Settings that a choice depends on. Records of earlier versions lack some."""
    assert spec.tune is not None
    metric = spec.metrics[0]
    return {**asdict(spec.tune), "metric": metric.name, "metric_stage": metric.stage, "goal": metric.goal.value}


def at_end(spec: SweepSpec, chosen: Mapping[str, float]) -> list[str]:
    """Arms whose chosen value is the smallest or largest tried, so that a better one may lie beyond."""
    ends = (spec.tune.values[0], spec.tune.values[-1]) if spec.tune else ()
    return [arm for arm, value in chosen.items() if value in ends]

"""Reads the metrics, curves, cost and provenance of each run of a sweep, as far as they exist."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_illada.runtime.files import read_json_lines
from lit_illada.sweep.folder import PlannedRun, RunState, SweepFolder, read_record
from lit_illada.sweep.report.events import Curve, read_all
from lit_illada.sweep.spec import SweepSpec

_STEP = re.compile(r"step=(\d+)\.ckpt$")


@dataclass(frozen=True)
class Provenance:
    """Origin of a run's numbers."""

    config: Path
    commits: list[str]  # several: the run was resumed with other code
    data_sha256: list[str]  # several: the run was resumed with other data
    checkpoint: Path | None  # the newest, or the scored one
    checkpoint_step: int | None  # None: not part of the file name


@dataclass(frozen=True)
class RunRecord:
    """A planned run and the content of its files."""

    run: PlannedRun
    state: RunState
    folder: Path
    figures: dict[str, float]  # final metrics; empty for unfinished runs, whose numbers are of an earlier step
    curves: dict[str, Curve]  # by tag
    provenance: Provenance
    progress: dict[str, Any] = field(default_factory=dict)  # progress.json
    failure: dict[str, Any] = field(default_factory=dict)  # failed.json
    elapsed_s: float | None = None  # of all attempts
    memory_bytes: float | None = None

    @property
    def tokens(self) -> float | None:
        """Training tokens of the run, measured or else planned."""
        return self.figures.get("perf/tokens", self.run.tokens)

    @property
    def flops(self) -> float | None:
        """Training FLOPs of the run, measured or else planned."""
        return self.figures.get("perf/flops", self.run.flops)

    @property
    def num_steps(self) -> float | None:
        """Optimizer steps of the run, measured or else planned."""
        return self.figures.get("step", self.run.num_steps)


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder, read once."""

    folder: SweepFolder
    spec: SweepSpec
    records: list[RunRecord]

    def of_arm(self, arm: str, stage: str) -> dict[int | None, RunRecord]:
        """Records of an arm in a stage by seed; the key None is a run that all seeds share."""
        records = (record for record in self.records if record.run.stage == stage and arm in record.run.arms)
        return {record.run.seed: record for record in records}

    def sharing(self, stage: str) -> list[list[str]]:
        """Arms grouped by equal runs in a stage."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for arm in self.spec.all_arms():
            runs = tuple(record.run.id for record in self.of_arm(arm.name, stage).values())
            groups.setdefault(runs, []).append(arm.name)
        return list(groups.values())

    def differing_stages(self) -> list[str]:
        """Stages in which the runs of arms differ; all stages if there is a single arm."""
        num_arms = len(self.spec.all_arms())
        return [stage.name for stage in self.spec.stages if len(self.sharing(stage.name)) > 1 or num_arms == 1]

    @property
    def num_finished(self) -> int:
        """Number of finished runs."""
        return sum(record.state is RunState.FINISHED for record in self.records)


def collect(path: Path) -> Sweep:
    """Read a sweep's folder. Raises UserError if it holds no sweep."""
    folder = SweepFolder(path)
    spec, runs = folder.read_spec(), folder.read_plan()
    curves = read_all([folder.run_folder(run).path for run in runs])
    return Sweep(folder, spec, [_record(folder, run, of_run) for run, of_run in zip(runs, curves, strict=True)])


def _record(sweep: SweepFolder, run: PlannedRun, curves: dict[str, Curve]) -> RunRecord:
    folder = sweep.run_folder(run)
    state = folder.state
    done = read_record(folder.done) or {}
    summary = read_record(folder.summary) or {}
    figures = _numbers(summary.get("end", {})) if state is RunState.FINISHED else {}
    return RunRecord(
        run=run,
        state=state,
        folder=folder.path,
        figures=figures,
        curves=curves,
        provenance=_provenance(folder.path, summary),
        progress=read_record(folder.progress) or {},
        failure=(read_record(folder.failed) or {}) if state is RunState.FAILED else {},
        elapsed_s=done.get("elapsed_s", figures.get("perf/elapsed_s")),
        # on a GPU, the run reports the memory of the GPU; otherwise the process's peak is used
        memory_bytes=figures.get("perf/peak_memory_bytes", done.get("max_rss_bytes")),
    )


def _provenance(folder: Path, summary: dict[str, Any]) -> Provenance:
    file = folder / "provenance.jsonl"
    begins = read_json_lines(file, is_log=True) if file.exists() else []
    scored = summary.get("checkpoint_file")
    newest = max((folder / "checkpoints").glob("step=*.ckpt"), key=lambda path: path.name, default=None)
    checkpoint = Path(scored) if scored else newest
    step = _STEP.search(checkpoint.name) if checkpoint else None
    return Provenance(
        config=folder / "config.yaml",
        commits=_distinct(begins, "commit"),
        data_sha256=_distinct(begins, "data_sha256"),
        checkpoint=checkpoint,
        checkpoint_step=int(step[1]) if step else None,
    )


def _distinct(begins: list[dict[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(begin[key] for begin in begins if begin.get(key)))


def _numbers(figures: dict[str, Any]) -> dict[str, float]:
    return {
        name: value for name, value in figures.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }

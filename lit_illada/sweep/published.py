"""Committed results of sweeps: their files, their commit, and whether they are superseded."""

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

from lit_illada.errors import UserError
from lit_illada.runtime.files import write_atomically
from lit_illada.runtime.yaml_files import read_yaml
from lit_illada.schema import dump, from_tree
from lit_illada.sweep.folder import RunState, SweepFolder
from lit_illada.sweep.report.collect import Sweep, collect
from lit_illada.sweep.report.write import write_report
from lit_illada.sweep.variants import read_choice

DIRTY = "-dirty"  # ends the commit of a checkout with uncommitted changes
LOOP_EFFECTS = Path("loops") / "effects.csv"  # in the folder of a sweep that `loops reproduce` ran
_ONLY_IN_REPORT = ("index.html", "runs.parquet", "curves.parquet")  # large, and made again from a sweep's folder


@dataclass(frozen=True)
class Status:
    """Origin of committed results, status.yaml."""

    commits: list[str]  # of the runs; one for results that count as evidence
    is_clean: bool  # whether no run had uncommitted changes
    superseded: str | None = None  # why the current code need not give these figures; None: it must
    command: str | None = None  # command of a measurement that is no sweep


@dataclass(frozen=True)
class Published:
    """Folder of committed results."""

    path: Path

    @property
    def status(self) -> Status:
        """Content of status.yaml. Raises UserError if it is missing."""
        file = self.path / "status.yaml"
        if not file.is_file():
            raise UserError(f"{file}: no such file; results state their commit there: publish them with sweep publish")
        return from_tree(Status, read_yaml(file))

    @property
    def sweep(self) -> SweepFolder:
        """Files of the sweep that the results hold: sweep.yaml and tuning.json."""
        return SweepFolder(self.path)

    def figure(self, run_id: str, metric: str) -> float:
        """Committed metric of a run. Raises UserError if runs.csv has none."""
        for row in self._rows("runs.csv"):
            if row["run"] == run_id and row.get(metric):
                return float(row[metric])
        raise UserError(f"{self.path / 'runs.csv'}: no {metric} of run {run_id!r}")

    def noise_floor(self, metric: str) -> float | None:
        """Committed noise floor of a metric; None if it was not measured."""
        if not (self.path / "effects.csv").is_file():
            return None
        found = [row.get("noise_floor") for row in self._rows("effects.csv") if row.get("metric") == metric]
        return next((float(floor) for floor in found if floor), None)

    def _rows(self, name: str) -> list[dict[str, str]]:
        with (self.path / name).open(encoding="utf-8", newline="") as lines:
            return list(csv.DictReader(lines))


def published(results: Path) -> list[Published]:
    """Results in a folder, by name. Raises UserError if it holds none."""
    found = [Published(file.parent) for file in sorted(results.glob("*/runs.csv"))]
    if not found:
        raise UserError(f"{results}: no results of sweeps (no NAME/runs.csv)")
    return found


def publish(path: Path, results: Path) -> Path:
    """Write tables, figures and effects on loops of a finished sweep to `results`/NAME. Returns that folder.

    Raises UserError for a sweep that still tunes, unfinished runs, runs of several commits or of uncommitted changes,
    and a folder that holds other results.
    """
    sweep = collect(path)
    _require_finished(path, sweep)
    commits = sorted({commit for record in sweep.records for commit in record.provenance.commits})
    if len(commits) != 1 or commits[0].endswith(DIRTY):
        raise UserError(
            f"{path}: the runs are of {', '.join(commits) or 'no known commit'}; results that count as evidence are of "
            "one commit without uncommitted changes: run the sweep again in a new folder"
        )
    out = results / sweep.spec.name
    if (out / "runs.csv").exists():
        raise UserError(f"{out} holds results already: move or remove them first")
    write_report(path, out)
    for name in _ONLY_IN_REPORT:
        (out / name).unlink(missing_ok=True)
    if (path / LOOP_EFFECTS).is_file():
        shutil.copyfile(path / LOOP_EFFECTS, out / "loop_effects.csv")
    write_atomically(out / "sweep.yaml", dump(sweep.spec))
    if sweep.folder.tuned.is_file():
        write_atomically(out / "tuning.json", sweep.folder.tuned.read_text(encoding="utf-8"))
    write_atomically(out / "status.yaml", dump(Status(commits, is_clean=True)))
    return out


def _require_finished(path: Path, sweep: Sweep) -> None:
    """Raise UserError unless every arm has runs and all runs have finished."""
    spec, resume = sweep.spec, f"finish the sweep with: lit-illada sweep run {path} --resume"
    if spec.tune is not None and read_choice(sweep.folder, spec) is None:
        raise UserError(f"{path}: {spec.tune.key} is not chosen yet, since the tuning has not ended: {resume}")
    if unfinished := [record.run.id for record in sweep.records if record.state is not RunState.FINISHED]:
        raise UserError(f"{path}: {len(unfinished)} runs have not finished ({', '.join(unfinished[:3])}): {resume}")
    if absent := [arm.name for arm in spec.all_arms() if not sweep.of_arm(arm.name, spec.metrics[0].stage)]:
        raise UserError(f"{path}: the plan has no run of {', '.join(absent)}: {resume}")

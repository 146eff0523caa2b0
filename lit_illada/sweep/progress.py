"""Status of every run of a sweep: state, progress and time left, read from its files."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from lit_illada.sweep.folder import PlannedRun, RunState, SweepFolder, SweepRunFolder, read_record

# seconds without progress after which a run may hang or its machine may be down
_SILENT_S = 120.0


@dataclass(frozen=True)
class RunStatus:
    """Status of a run. None: unknown so far."""

    run: PlannedRun
    state: RunState
    fraction_done: float = 0.0  # 0 to 1
    metric: float | None = None  # newest value
    tokens_per_s: float | None = None
    elapsed_s: float | None = None  # of all attempts; of a running run, its steps so far at the pace of this attempt
    left_s: float | None = None
    is_silent: bool = False  # running, but without recent progress
    last_lines: tuple[str, ...] = ()  # of the log of a failed run
    waits_for: str | None = None  # id of a failed run that it depends on


class Overview:
    """Reads the statuses of a sweep's runs on every call of `look`; files of finished runs are read once."""

    def __init__(self, folder: SweepFolder, runs: Sequence[PlannedRun], metric: str) -> None:
        self.folder = folder
        self.runs = list(runs)
        self._metric = metric
        self._finished: dict[str, RunStatus] = {}

    def look(self) -> list[RunStatus]:
        """Statuses of all runs, in the order of the plan."""
        statuses: dict[str, RunStatus] = {}
        for run in self.runs:  # parents come first
            parent = statuses.get(run.parent) if run.parent else None
            statuses[run.id] = self._look_at(run, parent)
        return list(statuses.values())

    def _look_at(self, run: PlannedRun, parent: RunStatus | None) -> RunStatus:
        if run.id in self._finished:
            return self._finished[run.id]
        run_folder = self.folder.run_folder(run)
        match run_folder.state:
            case RunState.FINISHED:
                self._finished[run.id] = self._of_finished(run, run_folder)
                return self._finished[run.id]
            case RunState.RUNNING:
                return self._of_running(run, run_folder)
            case RunState.FAILED:
                failed = read_record(run_folder.failed) or {}
                return RunStatus(run, RunState.FAILED, last_lines=tuple(failed.get("last_lines", ())))
            case state:
                broken = None
                if parent is not None:
                    broken = parent.run.id if parent.state is RunState.FAILED else parent.waits_for
                return RunStatus(run, state, waits_for=broken)

    def _of_finished(self, run: PlannedRun, run_folder: SweepRunFolder) -> RunStatus:
        done = read_record(run_folder.done) or {}
        end = (read_record(run_folder.summary) or {}).get("end", {})
        return RunStatus(
            run, RunState.FINISHED, 1.0, end.get(self._metric), elapsed_s=done.get("elapsed_s"), left_s=0.0
        )

    def _of_running(self, run: PlannedRun, run_folder: SweepRunFolder) -> RunStatus:
        progress = read_record(run_folder.progress)
        attempts = run_folder.read_attempts()
        if progress is None or not attempts or progress["updated_at"] < attempts[-1]["started_at"][:19]:
            return RunStatus(run, RunState.RUNNING)  # still starting
        done = progress["step"] - progress["begun_at_step"]
        # the file counts seconds and steps from the start of this attempt
        step_s = progress["elapsed_s"] / done if done else None
        left = progress["max_steps"] - progress["step"]
        silent_s = (datetime.now() - datetime.fromisoformat(progress["updated_at"])).total_seconds()
        return RunStatus(
            run,
            RunState.RUNNING,
            progress["step"] / progress["max_steps"],
            progress["metrics"].get(self._metric),
            progress["tokens_per_s"] or None,
            step_s * progress["step"] if step_s is not None else None,
            step_s * left if step_s is not None else None,
            silent_s > _SILENT_S,
        )

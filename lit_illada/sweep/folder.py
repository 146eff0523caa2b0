"""Files of a sweep's folder, and the state of each run derived from them."""

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from lit_illada.errors import UserError
from lit_illada.runtime.files import MissingFileError, read_json, read_json_lines, write_atomically
from lit_illada.runtime.records import from_record, require_fields
from lit_illada.runtime.yaml_files import read_yaml
from lit_illada.schema import dump, from_tree
from lit_illada.sweep.library import RESOLVED_FILE
from lit_illada.sweep.spec import SweepSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep; arms with equal settings share it."""

    id: str  # name of its folder
    stage: str
    command: str
    arguments: list[str]  # words of the command line before the overrides
    overrides: list[str]  # KEY=VALUE, without run_dir
    seed: int | None  # None: all repetitions share the run
    arms: list[str]  # that share the run
    parent: str | None  # id of the run whose checkpoint it starts from
    begin_from: str | None  # checkpoint it starts from, if no run of this sweep wrote it
    # equal for runs that compute the same; a resumed sweep recognises its runs by it
    fingerprint: str
    config: dict[str, Any]  # resolved
    # of the training, at least where max_forwards ends it; None: not a training, or dependent on the data
    num_steps: int | None
    tokens: int | None  # of the training; None: as num_steps, or an alignment
    flops: float | None  # of the training; None: as num_steps


@dataclass(frozen=True)
class _Plan:
    runs: list[PlannedRun]


class RunState(StrEnum):
    """State of a run."""

    PENDING = "pending"  # no attempt yet
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # started, then stopped or killed; can be resumed


@dataclass(frozen=True)
class SweepRunFolder:
    """Paths of the files that a sweep adds to a run's folder, and of the run's own that it reads.

    attempts.jsonl has one line per attempt: {"started_at", "fingerprint", "before_s": seconds of earlier attempts}.
    """

    path: Path

    @property
    def progress(self) -> Path:
        """Current step and metrics, rewritten by the run."""
        return self.path / "progress.json"

    @property
    def log(self) -> Path:
        """Output of all attempts."""
        return self.path / "log.txt"

    @property
    def done(self) -> Path:
        """Duration and memory of the finished run."""
        return self.path / "done.json"

    @property
    def failed(self) -> Path:
        """Exit status and last lines of a failed attempt."""
        return self.path / "failed.json"

    @property
    def attempts(self) -> Path:
        """One line per attempt."""
        return self.path / "attempts.jsonl"

    @property
    def lock(self) -> Path:
        """Lock file of the executing process."""
        return self.path / "run.lock"

    @property
    def labels(self) -> Path:
        """Labels of the run's curves: arm, value of each axis, seed."""
        return self.path / "labels.json"

    @property
    def summary(self) -> Path:
        """Metrics at the start and the end, written by the run."""
        return self.path / "summary.json"

    @property
    def state(self) -> RunState:
        """State derived from the files and the lock."""
        if self.done.exists():
            return RunState.FINISHED
        if self.is_locked():
            return RunState.RUNNING
        if self.failed.exists():
            return RunState.FAILED
        return RunState.INTERRUPTED if self.attempts.exists() else RunState.PENDING

    def is_locked(self) -> bool:
        """Whether a process executes the run. The system releases the lock of a process that dies."""
        try:
            file = os.open(self.lock, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            _warn_unlockable(self.path.parent, str(error))
        finally:
            os.close(file)
        return False

    def read_attempts(self) -> list[dict[str, Any]]:
        """Records of attempts.jsonl, oldest first."""
        if not self.attempts.exists():
            return []
        fields = {"started_at": datetime, "fingerprint": str, "before_s": float}
        return [
            require_fields(record, fields, str(self.attempts)) for record in read_json_lines(self.attempts, is_log=True)
        ]


@dataclass(frozen=True)
class SweepFolder:
    """Folder of a sweep: sweep.yaml (the resolved spec), plan.json, runs/ID/ and report/."""

    path: Path

    @property
    def spec(self) -> Path:
        """The resolved spec."""
        return self.path / RESOLVED_FILE

    @property
    def plan(self) -> Path:
        """All planned runs."""
        return self.path / "plan.json"

    @property
    def tuned(self) -> Path:
        """Values chosen by the tuning runs; absent before they have ended, and in a sweep without tuning."""
        return self.path / "tuning.json"

    @property
    def runs(self) -> Path:
        """Parent folder of the runs."""
        return self.path / "runs"

    @property
    def report(self) -> Path:
        """Default folder of the report."""
        return self.path / "report"

    def run_folder(self, run: PlannedRun) -> SweepRunFolder:
        """Folder of a run."""
        return SweepRunFolder(self.runs / run.id)

    def state_of(self, run: PlannedRun) -> RunState:
        """State of a run."""
        return self.run_folder(run).state

    def write(self, spec: SweepSpec, runs: Sequence[PlannedRun]) -> None:
        """Write sweep.yaml and plan.json."""
        self.runs.mkdir(parents=True, exist_ok=True)
        write_atomically(self.spec, dump(spec))
        write_atomically(self.plan, json.dumps({"runs": [asdict(run) for run in runs]}, indent=1) + "\n")

    def read_spec(self) -> SweepSpec:
        """Read sweep.yaml. Raises UserError if this is not the folder of a sweep."""
        self._require(self.spec)
        return from_tree(SweepSpec, read_yaml(self.spec), is_strict=True)

    def read_plan(self) -> list[PlannedRun]:
        """Read plan.json. Raises UserError if this is not the folder of a sweep."""
        self._require(self.plan)
        return from_record(_Plan, read_json(self.plan), str(self.plan)).runs

    def begun(self) -> Iterator[tuple[str, str]]:
        """(fingerprint, id) of every run with an attempt, including runs that are no longer planned."""
        for attempts in sorted(self.runs.glob("*/attempts.jsonl")):
            if records := SweepRunFolder(attempts.parent).read_attempts():
                yield records[-1]["fingerprint"], attempts.parent.name

    def _require(self, file: Path) -> None:
        if not file.is_file():
            raise UserError(
                f"{self.path}: not the folder of a sweep (no {file.name}); start one with: lit-illada sweep run NAME"
            )


@contextmanager
def locked(folder: SweepRunFolder) -> Iterator[bool]:
    """Hold a run's lock. Yields whether it was acquired; True on a file system without locks."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.lock.open("a") as file:
        for wait_s in (0.05, 0.1, 0.2, 0.4, 0.0):  # another process that calls `is_locked` holds it briefly
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(wait_s)
            except OSError as error:
                _warn_unlockable(folder.path.parent, str(error))
                break
            else:
                break
        else:
            yield False
            return
        yield True


@cache  # warn once, although a live table checks every lock every few seconds
def _warn_unlockable(runs: Path, error: str) -> None:
    log.warning(
        "the runs in %s cannot be locked (%s): make sure that no two processes execute the same run", runs, error
    )


# required fields by file
_FIELDS: dict[str, dict[str, Any]] = {
    "progress.json": {
        "step": int,
        "max_steps": int,
        "begun_at_step": int,
        "updated_at": datetime,
        "elapsed_s": float,
        "tokens_per_s": float | None,
        "metrics": dict[str, float],
    },
    "done.json": {"elapsed_s": float, "max_rss_bytes": float},
    "failed.json": {"last_lines": list[str]},
    "words.json": {"job": str, "words": list[str]},
    "job.json": {"job_id": str},
    "tuning.json": {"key": str, "arms": dict[str, Any]},
}


def read_record(file: Path) -> dict[str, Any] | None:
    """Content of a JSON file of a run, such as progress.json; None if it does not exist yet.

    Raises UserError if a required field is missing or of the wrong type.
    """
    try:
        record = read_json(file)
    except MissingFileError:
        return None
    return require_fields(record, _FIELDS.get(file.name, {}), str(file))

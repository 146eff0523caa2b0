"""What lies in a sweep's folder, and in what state is each of its runs? The files alone tell."""

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
    """One run of a sweep, shared by every arm that needs exactly it.

    id: names its folder. arguments: the command's words before its overrides. overrides: without run_dir.
    seed: None for a stage that has the same one in every repetition. arms: all that use it.
    parent: the run whose checkpoint it begins with; begin_from: the checkpoint, where that is no run of the sweep.
    fingerprint: equal for two runs that would do the same; config: the resolved tree it is made of.
    num_steps, tokens, flops: of the whole training, None where only the data tell, or nothing is trained.
    """

    id: str
    stage: str
    command: str
    arguments: list[str]
    overrides: list[str]
    seed: int | None
    arms: list[str]
    parent: str | None
    begin_from: str | None
    fingerprint: str
    config: dict[str, Any]
    num_steps: int | None
    tokens: int | None
    flops: float | None


@dataclass(frozen=True)
class _Plan:
    runs: list[PlannedRun]


class RunState(StrEnum):
    """pending: never begun. interrupted: begun, and neither running nor ended."""

    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class SweepRunFolder:
    """What a sweep keeps of a run, beside what the run itself writes.

    attempts.jsonl has a line for each begin: {"started_at", "fingerprint", "before_s": seconds of earlier attempts}.
    """

    path: Path

    @property
    def progress(self) -> Path:
        return self.path / "progress.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def done(self) -> Path:
        return self.path / "done.json"

    @property
    def failed(self) -> Path:
        return self.path / "failed.json"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts.jsonl"

    @property
    def lock(self) -> Path:
        return self.path / "run.lock"

    @property
    def labels(self) -> Path:
        """What the run's curves are labelled with: its arm, its values of the axes, its seed."""
        return self.path / "labels.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def state(self) -> RunState:
        if self.done.exists():
            return RunState.FINISHED
        if self.is_locked():
            return RunState.RUNNING
        if self.failed.exists():
            return RunState.FAILED
        return RunState.INTERRUPTED if self.attempts.exists() else RunState.PENDING

    def is_locked(self) -> bool:
        """Whether the run's own process lives; the system drops the lock of one that died, however it died."""
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
        if not self.attempts.exists():
            return []
        fields = {"started_at": datetime, "fingerprint": str, "before_s": float}
        return [
            require_fields(record, fields, str(self.attempts)) for record in read_json_lines(self.attempts, is_log=True)
        ]


@dataclass(frozen=True)
class SweepFolder:
    """sweep.yaml (the spec as resolved), plan.json, runs/<id>/ and report/."""

    path: Path

    @property
    def spec(self) -> Path:
        return self.path / RESOLVED_FILE

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def report(self) -> Path:
        return self.path / "report"

    def run_folder(self, run: PlannedRun) -> SweepRunFolder:
        return SweepRunFolder(self.runs / run.id)

    def state_of(self, run: PlannedRun) -> RunState:
        return self.run_folder(run).state

    def write(self, spec: SweepSpec, runs: Sequence[PlannedRun]) -> None:
        self.runs.mkdir(parents=True, exist_ok=True)
        write_atomically(self.spec, dump(spec))
        write_atomically(self.plan, json.dumps({"runs": [asdict(run) for run in runs]}, indent=1) + "\n")

    def read_spec(self) -> SweepSpec:
        self._require(self.spec)
        return from_tree(SweepSpec, read_yaml(self.spec))

    def read_plan(self) -> list[PlannedRun]:
        self._require(self.plan)
        return from_record(_Plan, read_json(self.plan), str(self.plan)).runs

    def begun(self) -> Iterator[tuple[str, str]]:
        """(fingerprint, id) of every run whose folder has been begun, planned still or not."""
        for attempts in sorted(self.runs.glob("*/attempts.jsonl")):
            if records := SweepRunFolder(attempts.parent).read_attempts():
                yield records[-1]["fingerprint"], attempts.parent.name

    def _require(self, file: Path) -> None:
        if not file.is_file():
            raise UserError(f"{self.path}: no sweep there (no {file.name}); begin one with: lit-illada sweep run NAME")


@contextmanager
def locked(folder: SweepRunFolder) -> Iterator[bool]:
    """Hold a run's lock; False where another process has it. True, too, where the file system knows no locks."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.lock.open("a") as file:
        for wait_s in (0.05, 0.1, 0.2, 0.4, 0.0):  # whoever only looks holds it for a moment
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


@cache  # whoever shows a sweep looks at every lock every few seconds
def _warn_unlockable(runs: Path, error: str) -> None:
    log.warning("the runs in %s cannot be locked (%s): see that no two processes work at one of them", runs, error)


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
}


def read_record(file: Path) -> dict[str, Any] | None:
    """progress.json, done.json, failed.json or summary.json; None where there is none yet."""
    try:
        record = read_json(file)
    except MissingFileError:
        return None
    return require_fields(record, _FIELDS.get(file.name, {}), str(file))

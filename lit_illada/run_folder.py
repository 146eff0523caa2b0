"""Folder of a run: creates, opens, locks and reads it."""

import fcntl
import json
import logging
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from typing import Any

from lit_illada import __version__
from lit_illada.errors import UserError
from lit_illada.runtime.files import append_line, open_own, read_json, read_json_lines, write_atomically
from lit_illada.runtime.records import checked, require_fields

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files. The folder also holds the event files of TensorBoard."""

    path: Path

    @property
    def config(self) -> Path:
        """Resolved config; its presence marks the folder of a run."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of the model and the training state."""
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """Tokenizer of the training data."""
        return self.path / "tokenizer"

    @property
    def samples(self) -> Path:
        """Generated samples of pretraining."""
        return self.path / "samples.txt"

    @property
    def answers(self) -> Path:
        """Generated answers of fine-tuning's evaluation."""
        return self.path / "answers.jsonl"

    @property
    def summary(self) -> Path:
        """Metrics at the start and the end of training."""
        return self.path / "summary.json"

    @property
    def progress(self) -> Path:
        """Current step and metrics, rewritten during training."""
        return self.path / "progress.json"

    @property
    def provenance(self) -> Path:
        """Command, commit and package versions, one line per start."""
        return self.path / "provenance.jsonl"

    @property
    def labels(self) -> Path:
        """Labels of the run within a sweep."""
        return self.path / "labels.json"

    @property
    def ranks(self) -> Path:
        """Status files of the ranks of a distributed run."""
        return self.path / "ranks"

    @property
    def rollbacks(self) -> Path:
        """Finished rollbacks after divergence, one per line."""
        return self.path / "rollbacks.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the training process."""
        return self.path / "training.lock"

    @property
    def rollback(self) -> Path:
        """Present while a rollback is in progress."""
        return self.path / "rollback.json"

    @classmethod
    def create(cls, path: str | None, name: str, now: datetime) -> "RunFolder":
        """Create a new folder, by default runs/<name>-<time>. Raises UserError if the path already holds a run."""
        if not path:
            require_name(name)
        folder = cls(Path(path) if path else _unused(Path("runs") / f"{name}-{now:%Y%m%d-%H%M%S}"))
        folder.require_unused()
        folder.path.mkdir(parents=True, exist_ok=True)
        return folder

    def require_unused(self) -> None:
        """Raise UserError if the folder already holds a run."""
        if self.config.exists():
            raise UserError(
                f"{self.path} already holds a run: resume it with --resume {self.path}, or choose another run_dir"
            )

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open an existing run. Raises UserError if the folder holds none."""
        folder = cls(path)
        if not folder.config.is_file():
            raise UserError(f"{path}: no run there (no {folder.config.name})")
        return folder

    @classmethod
    def of_checkpoint(cls, path: Path) -> "RunFolder":
        """Folder of the run that wrote a checkpoint."""
        return cls(path.parent.resolve().parent)  # a link to a checkpoint belongs to the run that holds the link

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold an exclusive lock on the folder. Raises UserError with the process that already holds it.

        A POSIX record lock: child processes do not inherit it, and the system releases it when this process dies.
        """
        descriptor = open_own(self.lock, os.O_RDWR | os.O_APPEND)
        with os.fdopen(descriptor, "a+", encoding="utf-8") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:  # which one depends on the file system
                file.seek(0)
                raise UserError(
                    f"{self.path} is already being trained by {file.read().strip() or 'another process'}: wait until "
                    "it ends, or stop it"
                ) from error
            except OSError as error:
                log.warning(
                    "%s cannot be locked (%s): make sure that no other process trains in this folder", self.path, error
                )
            else:
                file.truncate(0)
                file.write(_this_process() + "\n")
                file.flush()
            yield

    def write_config(self, text: str) -> None:
        """Write config.yaml."""
        write_atomically(self.config, text)

    def write_summary(self, figures: dict[str, Any]) -> None:
        """Write summary.json."""
        write_atomically(self.summary, json.dumps(figures, indent=2) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """Return the metrics at the start and the end of training; empty if none are written yet."""
        if not self.summary.exists():
            return {}
        summary: dict[str, Any] = read_json(self.summary)
        for key in ("start", "end"):
            checked(dict[str, float | None], summary.get(key, {}), f"{self.summary}: {key}")
        return summary

    def read_labels(self) -> dict[str, Any] | None:
        """Return the run's labels within its sweep, such as its arm; None outside a sweep."""
        return read_json(self.labels) if self.labels.is_file() else None

    def read_rollbacks(self) -> list[dict[str, Any]]:
        """Return the records of rollbacks to an earlier checkpoint, oldest first."""
        if not self.rollbacks.is_file():
            return []
        return [
            require_fields(record, {"skipped_rows": list[int] | None}, str(self.rollbacks))
            for record in read_json_lines(self.rollbacks)
        ]

    def write_rollback(self, number: int, record: dict[str, Any]) -> None:
        """Write the record of rollback `number`, counted from 1; repeating the call changes nothing."""
        lines = [json.dumps(each) + "\n" for each in (*self.read_rollbacks()[: number - 1], record)]
        write_atomically(self.rollbacks, "".join(lines))

    def write_provenance(
        self, now: datetime, data_sha256: str | None = None, own_files: Mapping[str, str] | None = None
    ) -> None:
        """Append command, commit and package versions of this start.

        data_sha256: hash of the data set. own_files: hashes of the files of the user's classes, by class; those that
        differ from the previous start are reported.
        """
        own_files = own_files or {}
        before = self._last_own_files() if own_files else {}
        for name in [name for name in own_files if before.get(name, own_files[name]) != own_files[name]]:
            log.warning(
                "%s has changed since this run was last started (sha256 %.8s, now %.8s): its results mix both versions",
                name,
                before[name],
                own_files[name],
            )
        packages = ("torch", "lightning", "torchmetrics", "webdataset", "tokenizers", "numpy")
        record = {
            "started_at": now.isoformat(timespec="seconds"),
            "command": sys.argv,
            "commit": current_commit(),
            "data_sha256": data_sha256,
            "own_files": dict(own_files),
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            "versions": {"lit-illada": __version__, **{package: version(package) for package in packages}},
        }
        append_line(self.path / "provenance.jsonl", json.dumps(record))

    def _last_own_files(self) -> dict[str, str]:
        records = read_json_lines(self.provenance, is_log=True) if self.provenance.is_file() else []
        return checked(dict[str, str], records[-1].get("own_files", {}), str(self.provenance)) if records else {}


def require_name(name: str) -> None:
    """Raise UserError for a name that would place the run's folder outside runs/."""
    if not name.strip() or name.startswith(".") or len(name) > 100 or not name.isprintable() or set(name) & {"/", "\\"}:
        raise UserError(
            f"name={name[:100]!r} is not a folder name (no '/', no leading '.', 1 to 100 printable characters); "
            "to choose the folder itself, set run_dir"
        )


def current_commit() -> str | None:
    """Commit of the git checkout that holds this code, `-dirty` if it has uncommitted changes; None outside one."""
    return commit_of(Path(__file__))


def commit_of(file: Path) -> str | None:
    """Commit of the git checkout that a file is part of; None for a file that no checkout tracks.

    A package installed in a project's .venv lies in that project's checkout, which does not track it.
    """
    try:
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        # without --exclude, a release's tag and the distance to it take the place of the hash
        return _git(file.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    result = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings: `{"model": {"hidden_size": 256}}` becomes `{"model.hidden_size": 256}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            flat[f"{prefix}{key}"] = value if is_number else str(value)
    return flat


def _this_process() -> str:
    """Description of this process for the lock file."""
    job = os.environ.get("SLURM_JOB_ID")
    of_job = f" (Slurm job {job})" if job else ""
    return f"process {os.getpid()} on {socket.gethostname()}{of_job}, since {datetime.now():%Y-%m-%d %H:%M:%S}"


def _unused(path: Path) -> Path:
    """Return the path, with a number appended if a run started in the same second already has it."""
    return next(p for p in chain([path], (Path(f"{path}-{n}") for n in count(2))) if not p.exists())

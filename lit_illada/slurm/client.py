"""Runs the commands of Slurm (sbatch, squeue and scancel) and tolerates outages of its controller."""

import logging
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from lit_illada.errors import UserError

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

# options of sbatch that follow from settings of a training run, by the setting to use instead
_BY_TRAINING = {"nodes": "--nodes", "ntasks-per-node": "trainer.devices", "gpus-per-node": "--gpus-per-node"}


@dataclass(frozen=True)
class Allocation:
    """Resources of a job, under sbatch's names. None: the cluster's default.

    Raises UserError for an option in `other` that has a field, or that a job script sets.
    """

    nodes: int = 1
    ntasks_per_node: int = 1
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    """Memory per node, such as 500G; 0: all."""
    time: str | None = None
    """Time limit, in the formats of sbatch."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    other: tuple[str, ...] = ()
    """Further options of sbatch, KEY=VALUE without their dashes."""

    def __post_init__(self) -> None:
        if wrong := next((text for text in self.other if "=" not in text), None):
            raise UserError(f"--sbatch {wrong}: write KEY=VALUE, such as exclude=node7")
        named = {item.name.replace("_", "-") for item in fields(self)} - {"other"}
        for text, name in zip(self.other, self.other_names, strict=True):
            if setting := _BY_TRAINING.get(name):
                raise UserError(
                    f"--sbatch {text}: the script sets this option; for a training run it follows from {setting}"
                )
            if name == "array":
                raise UserError(
                    f"--sbatch {text}: a run is one job; the tasks of an array would all train in the same folder. "
                    "`launch data` submits an array: use --parts and --at-once"
                )
            if name in named:
                raise UserError(f"--sbatch {text}: use --{name} {text.partition('=')[2]}")

    @property
    def other_names(self) -> list[str]:
        """Option names in `other`, without dashes."""
        return [text.partition("=")[0].lstrip("-") for text in self.other]

    def options(self) -> list[str]:
        """Options as written after `#SBATCH` in a script."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "other"}
        pairs = [(name.replace("_", "-"), str(value)) for name, value in named.items() if value is not None]
        pairs += zip(self.other_names, (text.partition("=")[2] for text in self.other), strict=True)
        return [option(name, value) for name, value in pairs]


def option(name: str, value: str | Path) -> str:
    """`--name=value`, quoted for the shell."""
    return f"--{name}={shlex.quote(str(value))}"


def is_available() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def check(script: str) -> None:
    """Raise UserError if Slurm would reject the script. Submits nothing."""
    _answer(["sbatch", "--test-only"], script)


def submit(script: Path, *arguments: str, options: Sequence[str] = ()) -> str:
    """Submit a script. Returns the job id. Raises UserError with the message of sbatch if it is rejected."""
    return _answer(["sbatch", "--parsable", *options, str(script), *arguments]).split(";")[0].strip()


def cancel(jobs: Sequence[str]) -> bool:
    """Cancel jobs. Returns whether Slurm accepted the request."""
    return subprocess.run(["scancel", *jobs], check=False).returncode == 0


def queued_jobs() -> set[str]:
    """Ids of the user's pending and running jobs; each task of an array separately, such as `12_3`."""
    return set(_answer(["squeue", "--me", "--array", "--noheader", "--format", "%i"]).split())


class Outage:
    """Tolerates failures of one kind of Slurm command for `limit_s` seconds. Logs once per outage.

    The controller is restarted now and then, while jobs continue to run.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since: float | None = None

    def call(self, command: Callable[[], Answer]) -> Answer | None:
        """Result of a Slurm command; None if it raised UserError. Raises that error after `limit_s` of failures."""
        try:
            answer = command()
        except UserError as error:
            now = time.monotonic()
            if self._since is None:
                self._since = now
                log.warning("%s; retrying for up to %g minutes", error, self._limit_s / 60)
            if now - self._since >= self._limit_s:
                raise
            return None
        self._since = None
        return answer


def _answer(command: list[str], stdin: str | None = None) -> str:
    """Output of a command. Raises UserError where it is missing or fails."""
    try:
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not installed here; run this on a machine of the Slurm cluster") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"{command[0]} failed: {' '.join(error.stderr.split())}") from error

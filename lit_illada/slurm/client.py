"""What is asked of Slurm, and what does it answer? The one place that runs its commands."""

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from lit_illada.errors import UserError

# what a training's own settings say
_BY_TRAINING = {"nodes": "--nodes", "ntasks-per-node": "trainer.devices", "gpus-per-node": "--gpus-per-node"}


@dataclass(frozen=True)
class Allocation:
    """What a job asks for, under sbatch's names; None: the cluster's default.

    other: further options of sbatch, `KEY=VALUE` without their dashes.
    """

    nodes: int = 1
    ntasks_per_node: int = 1
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    other: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if wrong := next((text for text in self.other if "=" not in text), None):
            raise UserError(f"--sbatch {wrong}: write KEY=VALUE, such as exclude=node7")
        named = {item.name.replace("_", "-") for item in fields(self)} - {"other"}
        for text, name in zip(self.other, self.other_names, strict=True):
            if setting := _BY_TRAINING.get(name):
                raise UserError(
                    f"--sbatch {text}: the script says so itself, and for a training it is set by {setting}"
                )
            if name == "array":
                raise UserError(
                    f"--sbatch {text}: a run is one job, whose tasks would train over each other in one folder; for "
                    "`launch data` the array is that of --parts and --at-once"
                )
            if name in named:
                raise UserError(f"--sbatch {text}: use --{name} {text.partition('=')[2]}")

    @property
    def other_names(self) -> list[str]:
        return [text.partition("=")[0].lstrip("-") for text in self.other]

    def options(self) -> list[str]:
        """As lines of a script say them, after `#SBATCH`."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "other"}
        pairs = [(name.replace("_", "-"), str(value)) for name, value in named.items() if value is not None]
        pairs += zip(self.other_names, (text.partition("=")[2] for text in self.other), strict=True)
        return [option(name, value) for name, value in pairs]


def option(name: str, value: str | Path) -> str:
    return f"--{name}={shlex.quote(str(value))}"


def is_there() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def check(script: str) -> None:
    """Raises UserError if Slurm would refuse the script; nothing is submitted."""
    _answer(["sbatch", "--test-only"], script)


def submit(script: Path, *arguments: str, options: Sequence[str] = ()) -> str:
    """The job's id. Raises UserError with what sbatch says against the script."""
    return _answer(["sbatch", "--parsable", *options, str(script), *arguments]).split(";")[0].strip()


def cancel(jobs: Sequence[str]) -> bool:
    """Whether Slurm has taken it."""
    return subprocess.run(["scancel", *jobs], check=False).returncode == 0


def queued_jobs() -> set[str]:
    """The user's jobs that wait or run, array tasks one by one: `12_3`."""
    return set(_answer(["squeue", "--me", "--array", "--noheader", "--format", "%i"]).split())


def _answer(command: list[str], typed: str | None = None) -> str:
    try:
        return subprocess.run(command, input=typed, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise UserError(f"there is no {command[0]} here; run this on a machine of the cluster") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"{command[0]} says: {' '.join(error.stderr.split())}") from error

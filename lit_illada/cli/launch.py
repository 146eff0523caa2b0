"""The `launch` commands, which submit Slurm jobs: `pretrain`, `sft`, `align` and `data`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lit_illada.cli.frame import guarded, overrides_argument

if TYPE_CHECKING:
    from lit_illada.commands.launch import Request

_OPTIONS = [
    click.option("--partition", help="Partition of the cluster (default: the cluster's default)."),
    click.option("--time", metavar="LIMIT", help="Time limit of a job, as for sbatch: minutes, H:MM:SS or D-HH:MM."),
    click.option("--account"),
    click.option("--qos"),
    click.option("--constraint", metavar="FEATURE", help="Required node feature, such as h100."),
    click.option("--mem", metavar="SIZE", help="Memory per node, such as 500G; 0: all."),
    click.option("--cpus-per-task", type=click.IntRange(min=1), help="Cores per process; for training, cores per GPU."),
    click.option(
        "--setup",
        multiple=True,
        metavar="LINE",
        help="Shell line to run before the command, such as 'module load nccl'. Repeatable.",
    ),
    click.option(
        "--sbatch",
        multiple=True,
        metavar="KEY=VALUE",
        help="Further sbatch option: exclude=node7. Repeatable.",
    ),
    click.option("--after", metavar="JOB", help="Start after this job has succeeded."),
    click.option("--dry-run", "is_dry", is_flag=True, help="Print the script and submit nothing."),
]
_TRAINING_OPTIONS = [
    click.option("--nodes", type=click.IntRange(min=1), help="The same as trainer.num_nodes=N."),
    click.option(
        "--gpus-per-node",
        type=click.IntRange(min=1),
        help="One process per GPU: trainer.devices=N trainer.accelerator=gpu. Without it no GPU is requested.",
    ),
    click.option(
        "--save-before",
        "save_before_s",
        type=click.IntRange(min=1),
        default=120,
        show_default=True,
        metavar="SECONDS",
        help="How long before its time limit a job saves and is requeued.",
    ),
    click.option(
        "--resume",
        type=click.Path(path_type=Path),
        metavar="RUN",
        help="Resume this run folder from its last checkpoint; KEY=VALUE then sets values of its config.",
    ),
]


@click.group()
def launch() -> None:
    """Run pretrain, sft, align or data prepare as Slurm jobs that survive preemption and time limits.

    The script in the run's folder is plain bash that can be read and submitted again. Without Slurm, the error shows
    the same command for torchrun. For sweeps use lit-illada sweep run --slurm.
    """


def _with(*groups: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def decorated(command: Any) -> Any:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return decorated


@launch.command(
    "pretrain",
    epilog="""\b
Examples:
  lit-illada launch pretrain model=1b data.dir=data/crawl --nodes 2 --gpus-per-node 8 --time 24:00:00
  lit-illada launch pretrain experiment=demo --gpus-per-node 1 --partition gpu --dry-run
  lit-illada launch pretrain --resume runs/demo-20260101-120000 trainer.max_steps=2000 --gpus-per-node 1
""",
)
@_with(_TRAINING_OPTIONS, _OPTIONS)
@overrides_argument
@guarded
def launch_pretrain(resume: Path | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Pretrain as a job; the config is checked before the job is submitted.

    A job that is preempted or reaches its time limit saves, is requeued and resumes exactly. A cancelled job is not
    requeued; sbatch RUN/launch.sh resumes it.
    """
    from lit_illada.commands.launch import submit_training

    submit_training("pretrain", None, overrides, resume, _request(**options))


@launch.command(
    "sft",
    epilog="""\b
Examples:
  lit-illada launch sft runs/demo-20260101-120000 experiment=sft/demo --gpus-per-node 1 --time 2:00:00
  lit-illada launch sft --resume runs/sft-20260101-130000 --gpus-per-node 1
""",
)
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@_with(_TRAINING_OPTIONS, _OPTIONS)
@overrides_argument
@guarded
def launch_sft(checkpoint: Path | None, resume: Path | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Fine-tune the model of CHECKPOINT as a job, with the same requeueing as launch pretrain."""
    from lit_illada.commands.launch import submit_training

    if resume is not None and checkpoint is not None:
        # click assigns the first word to the checkpoint, although it is an override
        checkpoint, overrides = None, (str(checkpoint), *overrides)
    submit_training("sft", checkpoint, overrides, resume, _request(**options))


@launch.command(
    "align",
    epilog="""\b
Examples:
  lit-illada launch align runs/sft-20260101-130000 alignment=espo task=countdown --gpus-per-node 1 --time 4:00:00
  lit-illada launch align --resume runs/align-20260101-140000 --gpus-per-node 1
""",
)
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@_with(_TRAINING_OPTIONS, _OPTIONS)
@overrides_argument
@guarded
def launch_align(checkpoint: Path | None, resume: Path | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Align the model of CHECKPOINT as a job, with the same requeueing as launch pretrain."""
    from lit_illada.commands.launch import submit_training

    if resume is not None and checkpoint is not None:
        checkpoint, overrides = None, (str(checkpoint), *overrides)
    submit_training("align", checkpoint, overrides, resume, _request(**options))


@launch.command(
    "data",
    epilog="""\b
Examples:
  lit-illada launch data data=jsonl data.source.paths='[crawl/]' data.dir=data/crawl --parts 64 --cpus-per-task 8
  lit-illada launch data data=text data.source.paths='[books/]' data.dir=data/books --parts 4 --at-once 2 --dry-run
""",
)
@click.option(
    "--parts",
    type=click.IntRange(min=1),
    required=True,
    metavar="N",
    help="Array tasks; a file is not divided.",
)
@click.option("--at-once", type=click.IntRange(min=1), metavar="N", help="Maximum number of tasks that run at a time.")
@_with(_OPTIONS)
@overrides_argument
@guarded
def launch_data(parts: int, at_once: int | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Prepare data as job arrays over the input files, to the same bytes as lit-illada data prepare.

    One array scans the files; one job trains the tokenizer and finds duplicates and the shards' ends; one array
    tokenises and writes; one job writes the manifest. data.dir must be on a file system that all nodes share.
    """
    from lit_illada.commands.launch import submit_preparation

    submit_preparation(overrides, parts, at_once, _request(**options))


def _request(
    setup: tuple[str, ...],
    sbatch: tuple[str, ...],
    after: str | None,
    is_dry: bool,
    nodes: int | None = None,
    gpus_per_node: int | None = None,
    save_before_s: int = 120,
    **allocation: Any,
) -> "Request":
    from lit_illada.commands.launch import Request
    from lit_illada.slurm.client import Allocation

    return Request(Allocation(**allocation, other=sbatch), nodes, gpus_per_node, setup, after, save_before_s, is_dry)

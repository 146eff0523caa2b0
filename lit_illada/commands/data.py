"""Runs the `data` commands: preparation with progress, inspection, verification."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lit_illada.config import load
from lit_illada.data.config import DataConfig, PreparedSource
from lit_illada.data.dataset import inspection
from lit_illada.data.dataset.manifest import Manifest, is_url
from lit_illada.data.prepare.division import Part
from lit_illada.data.prepare.prepare import prepare
from lit_illada.data.prepare.step_workers import prepare_by_parts
from lit_illada.data.prepare.steps import Step, run_step
from lit_illada.data.prepare.tokenizer_training import OnProgress
from lit_illada.errors import InterruptedByUserError, UserError
from lit_illada.runtime.console import Console
from lit_illada.runtime.terminal import print_lines


def run_preparation(overrides: Sequence[str], overwrite: bool, workers: int | None) -> None:
    """Prepare a data set and print its statistics. workers: processes that read; None: one."""
    config = load("data", overrides).data
    if workers is not None:
        console = Console(stderr=True)
        manifest: Manifest | None = prepare_by_parts(
            config, workers, overwrite=overwrite, on_step=lambda step: console.print(f"{step} …", highlight=False)
        )
    else:
        manifest = prepare_dataset(config, Console(stderr=True), overwrite=overwrite)
    if manifest is None:
        raise UserError(f"{config.dir}: nothing to prepare from; choose data=stdlib, text, jsonl or hf")
    _show(manifest, config)


def prepare_part(step: str, part: str, overrides: Sequence[str]) -> None:
    """Run a step of a divided preparation. part: INDEX/COUNT."""
    config = load("data", overrides).data
    with _progress(Console(stderr=True)) as on_progress:
        manifest = run_step(Step(step), config, Part.parse(part), on_progress)
    if manifest is not None:
        _show(manifest, config)


def _show(manifest: Manifest, config: DataConfig) -> None:
    for name in ("train", "validation"):
        split = manifest.split(name)
        print_lines(f"{name}: {split.documents:,} documents, {split.tokens:,} tokens, {len(split.shards)} shards")
    print_lines(
        f"removed: {manifest.duplicates:,} duplicates, {manifest.empty:,} empty, {manifest.bad_documents:,} unreadable"
    )
    print_lines(f"written to {config.dir}; to inspect it: lit-illada data inspect {config.dir}")


def print_inspection(folder: str) -> None:
    """Print statistics and samples of a data set."""
    print_lines(str(inspection.inspect(folder)))


def print_verification(folder: str) -> None:
    """Check every shard of a data set and print the problems. Raises UserError if there are any."""
    problems = inspection.verify(folder)
    for problem in problems:
        print_lines(problem)
    if problems:
        raise UserError(f"{folder}: {len(problems)} problem{'s' * (len(problems) > 1)} found")
    print_lines(f"{folder}: all shards are intact")


def prepare_dataset(config: DataConfig, console: Console, *, overwrite: bool = False) -> Manifest | None:
    """Prepare the data set with a progress bar unless it is finished. Returns None if the config names no source."""
    if isinstance(config.source, PreparedSource) or is_url(config.dir):
        return None
    try:
        with _progress(console) as on_progress:
            return prepare(config, overwrite=overwrite, on_progress=on_progress)
    except KeyboardInterrupt as error:
        raise InterruptedByUserError(
            f"stopped while preparing {config.dir}; finished shards stay. Resume with the same command: "
            f"lit-illada {shlex.join(sys.argv[1:])}"
        ) from error


@contextmanager
def _progress(console: Console) -> Iterator[OnProgress]:
    """A progress bar per stage on a terminal, a line per stage elsewhere."""
    columns = [
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(compact=True),
    ]
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def on_progress(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                for finished in tasks.values():
                    bar.update(finished, total=1, completed=1)
                tasks[stage] = bar.add_task(stage, total=total, amount="")
                if not console.is_terminal:
                    console.print(f"{stage} …", highlight=False)
            amount = f"{done / 1e6:,.1f} MB" if done else ""
            bar.update(tasks[stage], completed=done, total=total, amount=amount)

        yield on_progress
        for finished in tasks.values():
            bar.update(finished, total=1, completed=1)

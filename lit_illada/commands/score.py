"""The `score` command: evaluates a checkpoint on tasks and texts, and writes items and a summary."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from lit_illada.checkpoints.open import checkpoint_file, load_checkpoint, run_of
from lit_illada.commands.chat_hint import hint_at_chat
from lit_illada.config import ScoreConfig, load
from lit_illada.errors import UserError
from lit_illada.evaluation.against import compare, read_baseline
from lit_illada.evaluation.base import Progress
from lit_illada.evaluation.chained_arithmetic import scalars
from lit_illada.evaluation.jobs import EvaluationRequest, jobs, problems_sha256, read_evaluations
from lit_illada.evaluation.writer import Writer
from lit_illada.run_folder import RunFolder, flatten
from lit_illada.runtime import plugins
from lit_illada.runtime.console import Console
from lit_illada.runtime.terminal import print_lines
from lit_illada.runtime.yaml_files import read_yaml
from lit_illada.schema import dump, to_tree
from lit_illada.scoring.config import Chat
from lit_illada.scoring.scorer import OnWork
from lit_illada.training.config.trainer import Precision

_ANSWERS = ".answers"  # cache of generated answers, removed when everything is scored


def run_score(
    checkpoint: Path,
    request: EvaluationRequest,
    out: Path | None,
    overrides: Sequence[str],
    is_resumed: bool = False,
    against: Path | None = None,
) -> None:
    """Runs all requested evaluations, prints a table of each, and writes items and summary to a folder.

    Args:
        checkpoint: a run folder or a checkpoint file.
        request: the evaluations.
        out: output folder; None: a new one in scores/ of the run's folder.
        overrides: of the `score` config.
        is_resumed: reuse the results and answers of a killed attempt in `out`.
        against: folder of other scores to compare with, problem by problem.
    """
    now = datetime.now()
    config: ScoreConfig = load("score", overrides)
    if against is not None:
        read_baseline(against)
    folder = _folder(out, checkpoint, now, is_resumed)
    evaluations = read_evaluations(request, config, checkpoint)
    file = checkpoint_file(checkpoint)  # the newest now; a run still in training may write newer ones
    recorded = {**request.record(file), "problems_sha256": problems_sha256(evaluations)}
    previous = _previous(folder, config, recorded) if is_resumed else {}
    if "end" in previous:
        print_lines(f"{folder.path} is already scored")
        return _compare(folder, previous, against)
    if request.uses_wording and not isinstance(config.score.wording, Chat):
        hint_at_chat(checkpoint, "score/wording=chat")
    accelerator = config.accelerator.resolve()
    precision = config.precision.resolve(accelerator)
    is_bf16 = precision is Precision.bf16_mixed
    model, tokenizer = load_checkpoint(file, accelerator.device, precision.dtype_of_loaded)
    writer = Writer(model, tokenizer, config.generation, config.score.batch_prompts, is_bf16, folder.path / _ANSWERS)
    planned = jobs(evaluations, writer, config, folder.path)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_config(dump(config))
    folder.write_provenance(now, request.sha256(), plugins.files_of((config, evaluations)))
    summary = {
        "checkpoint": str(checkpoint),
        "checkpoint_file": str(file),
        "tokenizer_sha256": tokenizer.sha256,
        "model": to_tree(model.config),
        "config": to_tree(config),
        "request": recorded,
        "results": previous.get("results", []),
    }
    folder.write_summary(summary)
    with _progress() as progress:
        for job in planned[len(summary["results"]) :]:
            # saved after every evaluation, so that a later failure loses nothing
            summary["results"].append(job(progress))
            folder.write_summary(summary)
    summary["end"] = _figures(summary["results"])
    folder.write_summary(summary)
    shutil.rmtree(folder.path / _ANSWERS, ignore_errors=True)
    print_lines(f"written to {folder.path}")
    _compare(folder, summary, against)


def _compare(folder: RunFolder, summary: dict[str, Any], against: Path | None) -> None:
    """Compares finished scores with those in another folder, and adds the result to the summary."""
    if against is not None:
        comparison = {"folder": str(against), "tasks": compare(folder.path, summary["results"], against)}
        folder.write_summary({**summary, "against": comparison})


@contextmanager
def _progress() -> Iterator[Progress]:
    """Progress bars with the remaining time, on a terminal only."""
    console = Console(stderr=True)
    task = TextColumn("{task.description}", style="bold", markup=False)
    times = (TimeElapsedColumn(), TextColumn("left", markup=False), TimeRemainingColumn())
    columns = (task, BarColumn(), TaskProgressColumn(), *times)
    with ProgressBar(*columns, console=console, disable=not console.is_terminal) as bar:

        def progress(what: str, amount: int) -> OnWork:
            task = bar.add_task(what, total=amount)
            return lambda done: bar.advance(task, done)

        yield progress


def _folder(out: Path | None, checkpoint: Path, now: datetime, is_resumed: bool) -> RunFolder:
    """The output folder. Raises UserError if it already contains scores and is not resumed."""
    if out is None and is_resumed:
        raise UserError("--resume needs the folder of the scores to resume: give --out FOLDER")
    if out is None:
        name = run_of(checkpoint).path / "scores" / f"{now:%Y%m%d-%H%M%S}"
        out = next(p for p in chain([name], (Path(f"{name}-{n}") for n in count(2))) if not p.exists())
    elif not is_resumed and RunFolder(out).config.exists():
        raise UserError(f"{out} already contains a run or scores: resume these with --resume, or give another --out")
    return RunFolder(out)


def _previous(folder: RunFolder, config: ScoreConfig, request: dict[str, Any]) -> dict[str, Any]:
    """The summary of the attempt to resume; empty without one. Raises UserError if its request or config differs."""
    summary: dict[str, Any] = {}
    if folder.summary.is_file():
        summary = folder.read_summary()
        there = flatten({**summary.get("config", {}), **summary.get("request", {})})
    elif folder.config.is_file():
        there = flatten({**read_yaml(folder.config), **request})
    else:
        return summary
    now = flatten(json.loads(json.dumps({**to_tree(config), **request})))
    if different := [
        f"{name}: {there.get(name)} in the folder, {value} requested"
        for name, value in now.items()
        if there.get(name) != value
    ]:
        raise UserError(
            f"{folder.path} contains scores of another request ({'; '.join(different[:3])}): "
            "remove it, or give another --out"
        )
    return summary


def _figures(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """All figures by name: `accuracy`, or with several rules or files `bound/accuracy` or `<file>/bound/accuracy`.

    Of several files or tasks of one name, the second is `<file>-2`, the third `<file>-3`.
    """
    figures: dict[str, float] = {}
    stems = [Path(result.get("file", result["kind"])).stem for result in results]
    for number, (stem, result) in enumerate(zip(stems, results, strict=True)):
        nth = stems[: number + 1].count(stem)
        file = "" if len(results) == 1 else f"{stem}/" if nth == 1 else f"{stem}-{nth}/"
        rules = result.get("rules") or {"": dict(scalars(result)) if result["kind"] == "reasoning" else result}
        for rule, values in rules.items():
            prefix = f"{file}{rule}/" if len(rules) > 1 else file
            named = {name: value for name, value in values.items() if isinstance(value, int | float)}
            figures |= {f"{prefix}{name}": float(value) for name, value in named.items()}
    return figures

"""The `score` command: a checkpoint and questions or texts in; accuracies, agreement and likelihoods out."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from lit_illada import build
from lit_illada.checkpoints import checkpoint_file
from lit_illada.config import PretrainConfig, ScoreConfig, SFTConfig, load
from lit_illada.data.chat_template import ChatTemplate
from lit_illada.data.instruction import Example
from lit_illada.errors import UserError
from lit_illada.held_out import config_of, continuations, score_problems
from lit_illada.run_folder import RunFolder, flatten
from lit_illada.scoring.candidates import Candidate
from lit_illada.scoring.config import ScoreRule
from lit_illada.scoring.evaluation import (
    Answer,
    Progress,
    Row,
    Write,
    check,
    score_choices,
    score_numbers,
    score_text,
    windows_of,
)
from lit_illada.scoring.harness import evaluate, harness_table, require_harness
from lit_illada.scoring.scorer import OnWork, Scorer
from lit_illada.scoring.tasks import ChoiceItem, NumberItem, read_items
from lit_illada.scoring.wording import Chat, Plain
from lit_illada.solve import numbers, problems, solve
from lit_illada.training.checkpoint import is_checkpoint
from lit_illada.training.trainer import Precision
from lit_illada.tree import dump, read_yaml, to_tree
from lit_illada.writing import Writer

log = logging.getLogger(__name__)
_ANSWERS = ".answers"  # what is written so far, until all is scored


def run(
    checkpoint: Path,
    tasks: Sequence[Path],
    texts: Sequence[Path],
    harness: Sequence[str],
    include_path: Path | None,
    out: Path | None,
    overrides: Sequence[str],
    is_reasoning: bool = False,
    num_held_out: int | None = None,
    is_resumed: bool = False,
) -> None:
    """Score everything, print a table of each, and write items and summary to a folder.

    is_reasoning: problems made on the spot are solved too. num_held_out: so many questions made of what the run itself
    has held out. is_resumed: what a killed attempt has scored and answered in the same folder is not done again.
    """
    now = datetime.now()
    config: ScoreConfig = load("score", overrides)
    folder = _folder(out, checkpoint, now, is_resumed)
    if not (tasks or texts or harness or is_reasoning or num_held_out):
        raise UserError(
            "nothing to score: give --task FILE, --text FILE, --reasoning, --held-out NUMBER or --harness TASK"
        )
    held_out = config_of(_run_of(checkpoint)) if num_held_out else None
    if harness:
        require_harness()
    items = {path: read_items(path, config.score.limit) for path in tasks}
    contents = {path: _read_text(path) for path in texts}
    posed = problems(config.reasoning) if is_reasoning else {}
    asked = {
        "checkpoint_state": _state(checkpoint_file(checkpoint)),
        "files": [path.name for path in (*tasks, *texts)],
        "files_sha256": _sha256([*tasks, *texts]),
        "harness": list(harness),
        "is_reasoning": is_reasoning,
        "num_held_out": num_held_out,
    }
    before = _before(folder, config, asked) if is_resumed else {}
    if "end" in before:
        print(f"{folder.path} is scored already")
        return
    accelerator = config.accelerator.resolve()
    model, tokenizer = build.load_checkpoint(checkpoint, accelerator.device)
    template = ChatTemplate(config.template, tokenizer) if _is_chat(config) or posed else None
    scorer = build.build_scorer(model, tokenizer, config.score, template)
    is_bf16 = config.precision.resolve(accelerator) is Precision.bf16_mixed
    writer = Writer(model, tokenizer, config.generation, config.score.batch_prompts, is_bf16, folder.path / _ANSWERS)
    write = partial(writer.answers, scorer.encode_prompt)
    for path, given in items.items():
        check(path, given, scorer, config.generation.max_new_tokens)
    windows = {path: windows_of(path, content, scorer) for path, content in contents.items()}
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_config(dump(config))
    folder.write_provenance(now, _sha256([*tasks, *texts]))
    summary = {
        "checkpoint": str(checkpoint),
        "checkpoint_file": str(checkpoint_file(checkpoint)),
        "tokenizer_sha256": tokenizer.sha256,
        "model": to_tree(model.config),
        "config": to_tree(config),
        "asked": asked,
        "results": before.get("results", []),
    }
    jobs: list[Callable[[Progress], dict[str, Any]]] = []
    if posed:
        assert template is not None
        jobs.append(partial(_solve, posed, writer, template, folder))
    for number, (path, given) in enumerate(items.items()):
        jobs.append(partial(_score_task, number, path, given, scorer, write, folder))
    for path, content in contents.items():
        jobs.append(partial(_score_text, path, content, windows[path], scorer))
    if held_out is not None:
        jobs.append(partial(_score_held_out, held_out, num_held_out or 0, writer, config, folder))
    if harness:
        jobs.append(partial(_score_harness, harness, include_path, scorer, write))
    folder.write_summary(summary)
    with _progress() as progress:
        for job in jobs[len(summary["results"]) :]:
            # what is finished is kept, whatever happens to the rest
            summary["results"].append(job(progress))
            folder.write_summary(summary)
    folder.write_summary({**summary, "end": _figures(summary["results"])})
    shutil.rmtree(folder.path / _ANSWERS, ignore_errors=True)
    print(f"written to {folder.path}")


def _is_chat(config: ScoreConfig) -> bool:
    return isinstance(config.score.wording, Chat)


def _solve(
    posed: dict[str, list[Example]], writer: Writer, template: ChatTemplate, folder: RunFolder, progress: Progress
) -> dict[str, Any]:
    name = "generations-reasoning.jsonl"
    result = solve(posed, writer, template, folder.path / name, progress)
    table = Table(title=f"chained arithmetic: {result['num_items']} problems", title_justify="left")
    for heading in ("level", "right, 95 % interval", "never ended", "looped", "tokens, mean"):
        table.add_column(heading, justify="right")
    for level, figures in {**result["levels"], "all": result}.items():
        shares = (f"{100 * figures[name]:.1f} %" for name in ("unfinished", "looped"))
        table.add_row(level.replace("_", " "), _percent(figures), *shares, f"{figures['mean_tokens']:.0f}")
    Console().print(table)
    return {**result, "items": name}


def _score_task(
    number: int,
    path: Path,
    given: list[ChoiceItem] | list[NumberItem],
    scorer: Scorer,
    write: Write,
    folder: RunFolder,
    progress: Progress,
) -> dict[str, Any]:
    choices = [item for item in given if isinstance(item, ChoiceItem)]
    problems = [item for item in given if isinstance(item, NumberItem)]
    if choices:
        rows, result = score_choices(path, choices, scorer, progress)
        _print_choices(result)
    else:
        rows, result = score_numbers(path, problems, scorer, write, progress)
        print(
            f"{path}: {result['num_correct']} of {result['num_items']} right, {_percent(result)}; "
            f"{result['num_without_number']} without a number"
        )
    result["items"] = f"items-{number}-{path.stem}.jsonl"
    _write_rows(folder.path / result["items"], rows)
    return result


def _score_text(
    path: Path, content: str, windows: Sequence[Candidate], scorer: Scorer, progress: Progress
) -> dict[str, Any]:
    result = score_text(path, content, windows, scorer, progress)
    is_bound = result["rule"] == ScoreRule.BOUND
    qualifier = {"bound": "at most ", "confidence": "no likelihood: "}.get(result["rule"], "")
    stderr = f" ± {result['nats_per_token_stderr']:.4f}" if is_bound else ""
    print(
        f"{path}: {qualifier}{result['nats_per_token']:.4f}{stderr} nats a token, "
        f"{result['bits_per_byte']:.4f} bits a byte"
    )
    draws = f"; ± is the standard error of {scorer.config.num_draws} draws" if is_bound else ""
    print(f"  by {result['rule']}: {result['num_tokens']:,} tokens, windows: {result['num_windows']:,}{draws}")
    return result


def _score_harness(
    tasks: Sequence[str], include_path: Path | None, scorer: Scorer, write: Write, progress: Progress
) -> dict[str, Any]:
    def write_what_fits(
        prompts: Sequence[str], max_new_tokens: int | None, temperature: float | None
    ) -> Iterator[Answer]:
        room = min(map(scorer.room_behind, prompts))
        if room == 0:
            raise UserError(f"a prompt of the task fills all the model's {scorer.model.max_length} positions")
        return write(prompts, room if max_new_tokens is None else min(room, max_new_tokens), temperature)

    results = evaluate(scorer, write_what_fits, tasks, include_path, progress)
    print(harness_table(results))
    kept = ("results", "groups", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "samples")
    lm_eval = json.loads(json.dumps({key: results[key] for key in kept if key in results}, default=str))
    return {"kind": "harness", "rule": scorer.rules[0].value, "lm_eval": lm_eval}


def _score_held_out(
    asked: PretrainConfig | SFTConfig,
    num: int,
    writer: Writer,
    config: ScoreConfig,
    folder: RunFolder,
    progress: Progress,
) -> dict[str, Any]:
    if isinstance(asked, SFTConfig):
        rows, result = score_problems(asked, num, writer, progress)
        for level in ("easy", "harder"):
            if f"num_{level}" in result:
                low, high = result[f"wilson_95_{level}"]
                share = result[f"exact_match_{level}"]
                print(f"{level} problems: {share:.1%} ({low:.0%}–{high:.0%}) of {result[f'num_{level}']} right")
    else:
        # the text itself, without the wording of a task
        wording = Plain(prompt="{question}", choice="{choice}")
        scorer = build.build_scorer(writer.model, writer.tokenizer, replace(config.score, wording=wording))
        rows, result = score_choices(Path("continuations"), continuations(asked, num), scorer, progress)
        _print_choices(result)
    result["items"] = "items-held-out.jsonl"
    _write_rows(folder.path / result["items"], rows)
    return result


def _figures(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Every number under a name of its own: `accuracy`, `bound/accuracy`, or `<file>/bound/accuracy` where several
    rules or files are scored.
    """
    figures: dict[str, float] = {}
    for result in results:
        file = f"{Path(result.get('file', result['kind'])).stem}/" if len(results) > 1 else ""
        rules = result.get("rules") or {"": dict(numbers(result)) if result["kind"] == "reasoning" else result}
        for rule, told in rules.items():
            prefix = f"{file}{rule}/" if len(rules) > 1 else file
            named = {name: value for name, value in told.items() if isinstance(value, int | float)}
            figures |= {f"{prefix}{name}": float(value) for name, value in named.items()}
    return figures


def _print_choices(result: dict[str, Any]) -> None:
    title = f"{result['file']}: {result['num_items']} items, by chance {100 * result['accuracy_by_chance']:.1f} %"
    table = Table(title=title, title_justify="left")
    for heading in ("rule", "accuracy, 95 % interval", "per byte", "passes", "seconds"):
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    for rule, figures in result["rules"].items():
        per_byte = f"{100 * figures['accuracy_per_byte']:.1f} %"
        table.add_row(rule, _percent(figures), per_byte, f"{figures['num_forwards']:,}", f"{figures['elapsed_s']:.1f}")
    console = Console()
    console.print(table)
    if len(result["rules"]) > 1:
        agreement = Table(title="agreement: items with the same choice", title_justify="left")
        for heading in ("", *result["agreement"]):
            agreement.add_column(heading.replace("_", " "), justify="right")
        for rule, row in result["agreement"].items():
            agreement.add_row(rule, *(f"{100 * share:.1f} %" for share in row.values()))
        console.print(agreement)
    if bound := result["rules"].get(ScoreRule.BOUND):
        print(f"bound: a choice's standard error is {bound['mean_stderr']:.3f} nats on average;")
        print(f"in {bound['num_undecided']} of {result['num_items']} items the lead is below two standard errors")


def _percent(figures: dict[str, Any]) -> str:
    low, high = figures["wilson_95"]
    return f"{100 * figures['accuracy']:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar with the time left for every part of the work, where there is a terminal to show it."""
    console = Console(stderr=True)
    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with ProgressBar(
        TextColumn("[bold]{task.description}"), *columns, console=console, disable=not console.is_terminal
    ) as bar:

        def progress(what: str, amount: int) -> OnWork:
            task = bar.add_task(what, total=amount)
            return lambda done: bar.advance(task, done)

        yield progress


def _folder(out: Path | None, checkpoint: Path, now: datetime, is_resumed: bool) -> RunFolder:
    """The given folder, or a new one in scores/ of the run's. Raises UserError for one that holds scores already and is
    not gone on with."""
    if out is None and is_resumed:
        raise UserError("--resume goes on with the scores in a folder: name it by --out")
    if out is None:
        name = _run_of(checkpoint).path / "scores" / f"{now:%Y%m%d-%H%M%S}"
        out = next(p for p in chain([name], (Path(f"{name}-{n}") for n in count(2))) if not p.exists())
    elif not is_resumed and RunFolder(out).config.exists():
        raise UserError(f"{out} already holds a run or its scores: go on with these by --resume, or give another --out")
    return RunFolder(out)


def _before(folder: RunFolder, config: ScoreConfig, asked: dict[str, Any]) -> dict[str, Any]:
    """The summary of the attempt that is gone on with; empty where there is none. Raises UserError where it scored
    something else, or otherwise."""
    summary: dict[str, Any] = {}
    if folder.summary.is_file():
        summary = json.loads(folder.summary.read_text(encoding="utf-8"))
        there = flatten({**summary.get("config", {}), **summary.get("asked", {})})
    elif folder.config.is_file():
        there = flatten({**read_yaml(folder.config), **asked})
    else:
        return summary
    now = flatten(json.loads(json.dumps({**to_tree(config), **asked})))
    if different := [
        f"{name}: {there.get(name)} there, {value} asked" for name, value in now.items() if there.get(name) != value
    ]:
        raise UserError(f"{folder.path} holds other scores ({'; '.join(different[:3])}): remove it, or give another --out")
    return summary


def _run_of(checkpoint: Path) -> RunFolder:
    is_folder = checkpoint.is_dir() and not is_checkpoint(checkpoint)
    return RunFolder(checkpoint) if is_folder else RunFolder.of_checkpoint(checkpoint)


def _state(checkpoint: Path) -> list[list[Any]]:
    """What tells whether it is the same still: the name, size and time of each of its files."""
    files = sorted(checkpoint.iterdir()) if checkpoint.is_dir() else [checkpoint]
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()]


def _sha256(files: Sequence[Path]) -> str | None:
    """Of what is scored; None for tasks that lm-eval brings."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() if files else None


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error

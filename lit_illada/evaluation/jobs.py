"""What is there to score, and how is each kind scored, told and kept?"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_illada import build
from lit_illada.checkpoints.open import run_of
from lit_illada.config import PretrainConfig, ScoreConfig, SFTConfig
from lit_illada.data.sft.chat_template import ChatTemplate
from lit_illada.data.sft.instruction import Example
from lit_illada.errors import UserError
from lit_illada.evaluation.harness import evaluate, harness_table, require_harness
from lit_illada.evaluation.held_out import config_of, continuations, score_problems
from lit_illada.evaluation.items import ChoiceItem, NumberItem, read_items
from lit_illada.evaluation.reasoning import problems, solve
from lit_illada.evaluation.task_scores import (
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
from lit_illada.evaluation.writer import Writer
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.files import read_text
from lit_illada.scoring.candidates import Candidate
from lit_illada.scoring.config import ScoreRule
from lit_illada.scoring.scorer import Scorer
from lit_illada.scoring.wording import Chat, Plain

Job = Callable[[Progress], dict[str, Any]]


@dataclass(frozen=True)
class Asked:
    """What is scored. include_path: of lm-eval tasks. is_reasoning: problems made on the spot are solved too.
    num_held_out: so many questions made of what the run itself has held out. num_fewshot: solved examples before each
    question of an lm-eval task; None: as the task says.
    """

    tasks: Sequence[Path] = ()
    texts: Sequence[Path] = ()
    harness: Sequence[str] = ()
    include_path: Path | None = None
    is_reasoning: bool = False
    num_held_out: int | None = None
    num_fewshot: int | None = None

    def __post_init__(self) -> None:
        if self.num_fewshot is not None and not self.harness:
            raise UserError(f"--num-fewshot {self.num_fewshot} is of lm-eval's tasks: name one by --harness TASK")
        if not (self.files or self.harness or self.is_reasoning or self.num_held_out):
            raise UserError(
                "nothing to score: give --task FILE, --text FILE, --reasoning, --held-out NUMBER or --harness TASK"
            )

    @property
    def files(self) -> list[Path]:
        return [*self.tasks, *self.texts]

    def sha256(self) -> str | None:
        """Of the files; None for tasks that lm-eval brings."""
        return hashlib.sha256(b"".join(file.read_bytes() for file in self.files)).hexdigest() if self.files else None

    def recorded(self, checkpoint: Path) -> dict[str, Any]:
        """What must be the same for scores to be gone on with. checkpoint: the file or folder itself, of no run."""
        return {
            "checkpoint_state": _state(checkpoint),
            "files": [path.name for path in self.files],
            "files_sha256": self.sha256(),
            "harness": list(self.harness),
            "is_reasoning": self.is_reasoning,
            "num_held_out": self.num_held_out,
            "num_fewshot": self.num_fewshot,
        }


@dataclass(frozen=True)
class Material:
    """What is asked, read; a mistake in it is told before the model is loaded."""

    asked: Asked
    items: dict[Path, list[ChoiceItem] | list[NumberItem]]
    contents: dict[Path, str]
    posed: dict[str, list[Example]]
    held_out: PretrainConfig | SFTConfig | None

    @classmethod
    def read(cls, asked: Asked, config: ScoreConfig, checkpoint: Path) -> "Material":
        """Raises UserError for what is not there, or cannot be read."""
        held_out = config_of(run_of(checkpoint)) if asked.num_held_out else None
        if asked.harness:
            require_harness()
        return cls(
            asked,
            items={path: read_items(path, config.score.limit) for path in asked.tasks},
            contents={path: read_text(path) for path in asked.texts},
            posed=problems(config.reasoning) if asked.is_reasoning else {},
            held_out=held_out,
        )

    def jobs(self, writer: Writer, config: ScoreConfig, folder: RunFolder) -> list[Job]:
        """In the order in which their results are kept. Raises UserError for what the model has no room for."""
        is_chat = isinstance(config.score.wording, Chat)
        template = ChatTemplate(config.template, writer.tokenizer) if is_chat or self.posed else None
        scorer = build.build_scorer(writer.model, writer.tokenizer, config.score, template)
        write = partial(writer.answers, scorer.encode_prompt)
        jobs: list[Job] = []
        if self.posed:
            assert template is not None
            jobs.append(partial(_solve, self.posed, writer, template, folder))
        for number, (path, given) in enumerate(self.items.items()):
            check(path, given, scorer, config.generation.max_new_tokens)
            jobs.append(partial(_score_task, number, path, given, scorer, write, folder))
        for path, content in self.contents.items():
            jobs.append(partial(_score_text, path, content, windows_of(path, content, scorer), scorer))
        if self.held_out is not None:
            jobs.append(partial(_score_held_out, self.held_out, self.asked.num_held_out or 0, writer, config, folder))
        if self.asked.harness:
            jobs.append(partial(_score_harness, self.asked, scorer, write, folder))
        return jobs


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


def _score_harness(asked: Asked, scorer: Scorer, write: Write, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    def write_what_fits(
        prompts: Sequence[str], max_new_tokens: int | None, temperature: float | None
    ) -> Iterator[Answer]:
        room = min(map(scorer.room_behind, prompts))
        if room == 0:
            raise UserError(f"a prompt of the task fills all the model's {scorer.model.max_length} positions")
        return write(prompts, room if max_new_tokens is None else min(room, max_new_tokens), temperature)

    out = folder.path / "lm-eval"
    results = evaluate(scorer, write_what_fits, asked.harness, asked.include_path, progress, asked.num_fewshot, out)
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


def _state(checkpoint: Path) -> list[list[Any]]:
    """What tells whether it is the same still: the name, size and time of each of its files."""
    files = sorted(checkpoint.iterdir()) if checkpoint.is_dir() else [checkpoint]
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()]


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

"""The commands `loops reproduce` and `loops run`: generate texts, analyze them and report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from lit_illada.commands.convert import run_convert
from lit_illada.commands.loops_analyze import run_analyze
from lit_illada.commands.score import run_score
from lit_illada.commands.sweep import execute, plan_sweep
from lit_illada.commands.sweep_report import run_report
from lit_illada.commands.sweep_slots import Workers
from lit_illada.config import SFTConfig
from lit_illada.data.sft.config import ReasoningSource
from lit_illada.data.sft.examples import make_examples
from lit_illada.errors import UserError
from lit_illada.evaluation.jobs import EvaluationRequest
from lit_illada.loops.detect.findings import detect
from lit_illada.loops.records import Fields
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.console import Console
from lit_illada.runtime.files import iterate_json_lines
from lit_illada.runtime.records import from_record
from lit_illada.runtime.terminal import print_lines
from lit_illada.schema import from_tree
from lit_illada.sweep.folder import PlannedRun, RunState, SweepFolder
from lit_illada.sweep.spec import Command
from lit_illada.tasks.base import Split
from lit_illada.tasks.items import ChoiceItem, read_items
from lit_illada.training.checkpointing.files import is_checkpoint

SMALL = "loop_reproduce"
GENERATIONS = "generations.jsonl"
_GATE_TEXTS = 2000


def reproduce_loops(
    name: str, overrides: Sequence[str], folder: Path | None, is_resumed: bool, workers: Workers
) -> None:
    """Checks the corpora, trains and generates as a sweep, and writes the loop report and the sweep report.

    Finished runs are reported even if others fail. Raises UserError for a sweep that solves no problems, and for a
    corpus that contains loops.
    """
    spec, sweep_folder, runs = plan_sweep(name, overrides, folder)
    if not any(map(_solves_problems, runs)):
        raise UserError(
            f"{name} is not an experiment on loops: none of its stages solves problems (command: score, arguments: "
            "[--reasoning] or [--task, FILE]), as in loop_reproduce, loop_causes and loop_mitigation"
        )
    is_arithmetic = any("--reasoning" in run.arguments for run in runs)
    if sources := corpora(runs):
        gate(sources, Console())
    done = execute(name, overrides, folder, is_resumed, workers)
    has_texts = any(_solves_problems(s.run) and s.state is RunState.FINISHED for s in done.statuses)
    if has_texts and not done.was_stopped:
        written = str(gather(sweep_folder))
        by = Fields(groups=("arm", "level") if is_arithmetic else ("arm",))
        run_analyze([written], sweep_folder.path / "loops", by, None, planned=spec.comparisons())
        run_report(str(sweep_folder.path), None)
        if is_arithmetic:
            print_lines("This reproduces the mechanism that iLLaDA's authors describe; they publish no loop rates.")
    done.end("lit-illada loops reproduce --sweep {} --resume")


def run_and_analyze(
    checkpoint: str, tasks: Sequence[str], folder: Path, overrides: Sequence[str], is_resumed: bool = False
) -> None:
    """Generates solutions with a model and analyzes them for loops.

    Args:
        checkpoint: a run, a converted folder, or a published layout in a folder or on the hub, which is converted once.
        tasks: files of problems with a numeric answer, `reasoning` for chained arithmetic, or tasks as `score` takes.
        folder: the output.
        overrides: of the `score` config.
        is_resumed: resume a killed attempt in `folder`.
    """
    scores = RunFolder(folder / "scores")
    if not is_resumed and ((folder / "loops").exists() or scores.config.exists()):
        raise UserError(
            f"{folder} already contains an analysis, or a part of one: continue it with --resume, or give another --out"
        )
    files, named = EvaluationRequest.split_tasks([task for task in tasks if task != "reasoning"])
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"{missing[0]}: no such file; give problems as JSON lines, the word reasoning, or a task")
    if choices := [file for file in files if any(isinstance(item, ChoiceItem) for item in read_items(file, 1))]:
        raise UserError(f"{choices[0]}: multiple choice, which generates no text; give problems with a numeric answer")
    model = _converted(checkpoint, folder)
    request = EvaluationRequest(files, is_reasoning="reasoning" in tasks, named_tasks=named)
    run_score(model, request, scores.path, ["score/wording=chat", *overrides], is_resumed)
    results = from_record(_Summary, scores.read_summary(), str(scores.summary)).results
    written = [str(scores.path / result.items) for result in results]
    run_analyze(written, folder / "loops", Fields(), None)


@dataclass(frozen=True)
class _Result:
    items: str  # file name of the generations


@dataclass(frozen=True)
class _Summary:
    results: list[_Result]


def _solves_problems(run: PlannedRun) -> bool:
    return run.command == Command.SCORE and not {"--reasoning", "--task"}.isdisjoint(run.arguments)


def corpora(runs: Sequence[PlannedRun]) -> list[SFTConfig]:
    """Fine-tuning configs with different corpora of reasoning; a corpus that differs in its seed only counts once."""
    configs: list[SFTConfig] = []
    seen: list[ReasoningSource] = []
    for run in runs:
        if run.command == Command.SFT:
            config = from_tree(SFTConfig, run.config)
            source = config.sft_data.source
            if isinstance(source, ReasoningSource) and (shape := _shape(source)) not in seen:
                seen.append(shape)
                configs.append(config)
    return configs


def _shape(source: ReasoningSource) -> ReasoningSource:
    """The source with equal values for whatever does not shape its traces."""
    if source.recheck_fraction == 0:
        source = replace(source, slip_fraction=0.0, min_recheck_depth=1)
    if source.retry_fraction == 0:
        source = replace(source, min_retry_number=0, max_retries=1, retry_sentence=True)
    return replace(source, seed=0)


def gate(configs: Sequence[SFTConfig], console: Console) -> None:
    """Rejects training corpora that contain loops, which a model would only copy. Raises UserError for one."""
    table = Table(title=f"loops in {_GATE_TEXTS:,} traces of each training corpus", title_justify="left")
    for heading in (
        "steps",
        "largest numbers",
        "ρ, traces with re-checks",
        "fraction of re-checks after a slip",
        "fraction of statements retried",
        "mean units per trace",
        "loops",
    ):
        table.add_column(heading, justify="right")
    for config in configs:
        source, fraction = config.sft_data.source, config.sft_data.validation_fraction
        assert isinstance(source, ReasoningSource)
        examples = make_examples(source, source.easy, Split.TRAIN, _GATE_TEXTS, fraction)
        findings = [detect(f"{m.reasoning}\n{m.content}") for m in (example.messages[-1] for example in examples)]
        looped = [example for example, found in zip(examples, findings, strict=True) if found.is_loop]
        if looped:
            raise UserError(
                f"the corpus with recheck_fraction={source.recheck_fraction} and "
                f"retry_fraction={source.retry_fraction} contains loops in {len(looped)} of {_GATE_TEXTS} traces, "
                f"such as {looped[0].origin}; a model would copy them"
            )
        mean = sum(found.length for found in findings) / len(findings)
        rechecks, slips = source.recheck_fraction, source.slip_fraction
        table.add_row(
            f"{source.easy.min_depth} to {source.easy.max_depth}",
            ", ".join(map(str, source.easy.largest)),
            f"{rechecks:g}",
            f"{slips:g}" if rechecks else "–",
            f"{source.retry_fraction:g}",
            f"{mean:.0f}",
            "0",
        )
    console.print(table)


def gather(sweep: SweepFolder) -> Path:
    """Writes the generations of all finished runs to one file, each with its arm and seed."""
    path = sweep.path / GENERATIONS
    with path.open("w", encoding="utf-8") as file:
        for planned in sweep.read_plan():
            if not _solves_problems(planned) or sweep.state_of(planned) is not RunState.FINISHED:
                continue
            folder = sweep.run_folder(planned).path
            for source in sorted([*folder.glob("generations-*.jsonl"), *folder.glob("items-*.jsonl")]):
                for _, row in iterate_json_lines(source):
                    for arm in planned.arms:
                        file.write(json.dumps({"arm": arm, "seed": planned.seed, **row}, ensure_ascii=False) + "\n")
    return path


def _converted(checkpoint: str, folder: Path) -> Path:
    """The checkpoint in this package's layout, converted into `folder` if necessary."""
    path = Path(checkpoint)
    if is_checkpoint(path) or (path / "checkpoints").is_dir():
        return path
    converted = folder / "checkpoint"
    if not (converted / "checkpoints").is_dir():
        run_convert(checkpoint, converted, None, None, None, None, 5.0, None)
    return converted

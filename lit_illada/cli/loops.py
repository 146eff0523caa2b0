"""Reasoning loops: `loops analyze`, `reproduce` and `run`."""

from pathlib import Path

import click

from lit_illada.cli.frame import guarded


@click.group()
def loops() -> None:
    """Detect, count and show reasoning loops in generated texts."""


@loops.command(
    epilog="""\b
Examples:
  lit-illada loops analyze trace.jsonl
  lit-illada loops analyze results/ --out loops-of-my-model
  lit-illada loops analyze answers.jsonl --text-field response --group-field subject loops.near_exact.mismatch=0.05
  lit-illada loops analyze --arm plain loops-plain/scores --arm ramp loops-ramp/scores
  lit-illada loops analyze results/generations.jsonl --compare "hard stop 192" "linear ramp 20"
  lit-illada loops analyze samples_gsm8k_2026-01-01T12-00-00.jsonl

\b
Formats: traces and scores of this package, lm-eval's samples_*.jsonl, d1's *_generations.json, any JSON lines with a
text, CSV, TSV and Parquet with a text column (from folders only .json and .jsonl); any other file is one text.
"""
)
@click.argument("words", nargs=-1, metavar="[FILE]... [KEY=VALUE]...")
@click.option("--arm", "arms", nargs=2, multiple=True, type=(str, click.Path(path_type=Path)), metavar="NAME FILE",
              help="Name of a condition and its file or folder; repeatable, to compare runs.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("loops"), show_default=True,
              metavar="FOLDER", help="Folder of report.html, records.jsonl and effects.csv.")  # fmt: skip
@click.option("--text-field", metavar="NAME", help="Field with the generated text (default: the usual names).")
@click.option("--prompt-field", metavar="NAME", help="Field with the prompt, by which texts are paired.")
@click.option("--correct-field", metavar="NAME", help="Field with the verdict on the answer.")
@click.option("--truth-field", metavar="NAME", help="Field with the true answer.")
@click.option("--group-field", "group_fields", multiple=True, metavar="NAME", help="Group by this field; repeatable.")
@click.option(
    "--compare", "pairs", nargs=2, multiple=True, metavar="FIRST SECOND",
    help="Compare two groups on the same problems; repeatable (default: all pairs, above four groups with the first).",
)  # fmt: skip
@click.option(
    "--encoding", metavar="NAME", help="Encoding of the files (default: UTF-8, or UTF-16 with a byte-order mark)."
)
@guarded
def analyze(
    words: tuple[str, ...],
    arms: tuple[tuple[str, Path], ...],
    out: Path,
    text_field: str | None,
    prompt_field: str | None,
    correct_field: str | None,
    truth_field: str | None,
    group_fields: tuple[str, ...],
    pairs: tuple[tuple[str, str], ...],
    encoding: str | None,
) -> None:
    """Detect loops in the generations of FILEs; print tables, and write a page and a record of each text.

    Needs neither a model nor torch. KEY=VALUE sets a threshold; `lit-illada config loops` lists them.
    """
    from lit_illada.commands.loops_analyze import run_analyze
    from lit_illada.loops.records import Fields

    fields = Fields(text_field, prompt_field, correct_field, truth_field, group_fields)
    run_analyze(words, out, fields, encoding, pairs, arms)


@loops.command(
    epilog="""\b
Examples:
  lit-illada loops reproduce
  lit-illada loops reproduce --sweep loop_mitigation seeds=[0,1]
  lit-illada loops reproduce --resume
"""
)
@click.option(
    "--sweep", "name", default="loop_reproduce", show_default=True,
    help="Sweep: loop_reproduce, loop_causes, loop_mitigation, or a YAML file.",
)  # fmt: skip
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Output folder (default: runs/sweeps/<name of the sweep>).",
)
@click.option("--resume", "is_resumed", is_flag=True, help="Resume killed runs and retry failed ones.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Concurrent runs (default: as many as cores, memory or GPUs allow)."
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU cores per run.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@guarded
def reproduce(
    name: str,
    folder: Path | None,
    is_resumed: bool,
    workers: int | None,
    threads: int,
    overrides: tuple[str, ...],
) -> None:
    """Reproduce reasoning loops from scratch: corpora, training, generation with traces, analysis, report.

    Corpora that contain loops are rejected. Arms are compared on the same problems, over seeds. The default takes about
    a quarter of an hour on two cores.
    """
    from lit_illada.commands.loops import reproduce_loops
    from lit_illada.commands.sweep_slots import Workers

    reproduce_loops(name, overrides, folder, is_resumed, Workers(workers, threads))


@loops.command(
    "run",
    epilog="""\b
Examples:
  lit-illada loops run --checkpoint GSAI-ML/iLLaDA-8B-Instruct --tasks gsm8k/test.jsonl generation=paper_instruct
  lit-illada loops run --checkpoint runs/sft-20260101-130000 --tasks reasoning generation.max_new_tokens=256
  lit-illada loops run --checkpoint runs/sft-20260101-130000 --tasks gsm8k/test.jsonl --out loops-gsm8k --resume
""",
)
@click.option("--checkpoint", required=True, help="Run folder, converted or published checkpoint, or hub id.")
@click.option(
    "--tasks", multiple=True, required=True, metavar="FILE|TASK",
    help="Problems with a numeric answer, as in GSM8K's files, the word reasoning, or a task as `score` takes.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("loops"), show_default=True,
              metavar="FOLDER", help="Output folder.")  # fmt: skip
@click.option("--resume", "is_resumed", is_flag=True, help="Resume a killed command in --out.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@guarded
def run_model(checkpoint: str, tasks: tuple[str, ...], out: Path, is_resumed: bool, overrides: tuple[str, ...]) -> None:
    """Solve problems with a model, with traces, and detect loops in its solutions."""
    from lit_illada.commands.loops import run_and_analyze

    run_and_analyze(checkpoint, tasks, out, overrides, is_resumed)

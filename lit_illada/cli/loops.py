"""Reasoning loops: `loops analyze`, `reproduce` and `run`."""

from pathlib import Path

import click

from lit_illada.cli.frame import guarded


@click.group()
def loops() -> None:
    """Find, count and show reasoning loops in generated texts."""


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
Read are: our own traces and scored problems, lm-eval's samples_*.jsonl, d1's *_generations.json, any JSON lines with a
text, CSV, TSV and Parquet with a text column (of a folder only .json and .jsonl); any other file is one text.
"""
)
@click.argument("words", nargs=-1, metavar="[FILE]... [KEY=VALUE]...")
@click.option("--arm", "arms", nargs=2, multiple=True, type=(str, click.Path(path_type=Path)), metavar="NAME FILE",
              help="A file or folder, and what its condition is called; repeatable, to compare runs.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("loops"), show_default=True,
              metavar="FOLDER", help="Where report.html and records.jsonl go.")  # fmt: skip
@click.option("--text-field", metavar="NAME", help="The field with the generated text (default: by convention).")
@click.option("--prompt-field", metavar="NAME", help="The field with the prompt: the same prompts are compared.")
@click.option("--correct-field", metavar="NAME", help="The field that says whether the answer is right.")
@click.option("--truth-field", metavar="NAME", help="The field with the true answer, to compare numbers with.")
@click.option("--group-field", "group_fields", multiple=True, metavar="NAME", help="Count by this field; repeatable.")
@click.option(
    "--compare", "pairs", nargs=2, multiple=True, metavar="FIRST SECOND",
    help="These two groups on the same problems; repeatable (default: each with each, or beyond four with the first).",
)  # fmt: skip
@click.option("--encoding", metavar="NAME", help="Of the files, where it is not UTF-8 (or UTF-16 with its mark).")
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
    """Count the loops in the generations of FILEs: a table here, a page and a record of each text in --out.

    No model and no torch is needed. KEY=VALUE sets a threshold of conf/loops.yaml (lit-illada config loops).
    """
    from lit_illada.commands.loops_analyze import run
    from lit_illada.loops.records import Fields

    fields = Fields(text_field, prompt_field, correct_field, truth_field, group_fields)
    run(words, out, fields, encoding, pairs, arms)


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
    help="Which arms: also loop_causes, loop_mitigation, or a YAML file.",
)  # fmt: skip
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where all of it is kept (default: runs/sweeps/<the sweep's name>).",
)
@click.option(
    "--resume", "is_resumed", is_flag=True, help="Go on with runs that were killed, and try failed ones again."
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Runs at a time (default: as many as cores, memory or GPUs allow)."
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Cores a run.")
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
    """Re-create the failure from nothing: corpora, training, generation with traces, analysis, report.

    No corpus may itself hold a loop. Arms are compared on the same problems, over seeds. Without options it takes
    about a quarter of an hour on two cores.
    """
    from lit_illada.commands.loops import reproduce_loops
    from lit_illada.commands.sweep import Workers

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
@click.option("--checkpoint", required=True, help="A run, a converted or published folder, or a hub id.")
@click.option(
    "--tasks", multiple=True, required=True, metavar="FILE",
    help="Problems with a number for an answer, as GSM8K's files; or the word reasoning. Repeatable.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("loops"), show_default=True,
              metavar="FOLDER", help="Where the generations and the analysis go.")  # fmt: skip
@click.option("--resume", "is_resumed", is_flag=True, help="Go on in --out where a kill broke off.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@guarded
def run_model(checkpoint: str, tasks: tuple[str, ...], out: Path, is_resumed: bool, overrides: tuple[str, ...]) -> None:
    """Let a model solve problems, with traces, and look for loops in what it writes."""
    from lit_illada.commands.loops import run_and_analyze

    run_and_analyze(checkpoint, tasks, out, overrides, is_resumed)

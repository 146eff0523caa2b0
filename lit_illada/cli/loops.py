"""Reasoning loops: `loops analyze`."""

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
  lit-illada loops analyze samples_gsm8k_2026-01-01T12-00-00.jsonl

\b
Read are: our own traces and scored problems, lm-eval's samples_*.jsonl, d1's *_generations.json, any JSON lines with a
text; any other file is one text.
"""
)
@click.argument("words", nargs=-1, required=True, metavar="FILE... [KEY=VALUE]...")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("loops"), show_default=True,
              metavar="FOLDER", help="Where report.html and records.jsonl go.")  # fmt: skip
@click.option("--text-field", metavar="NAME", help="The field with the generated text (default: by convention).")
@click.option("--prompt-field", metavar="NAME", help="The field with the prompt: the same prompts are compared.")
@click.option("--correct-field", metavar="NAME", help="The field that says whether the answer is right.")
@click.option("--truth-field", metavar="NAME", help="The field with the true answer, to compare numbers with.")
@click.option("--group-field", "group_fields", multiple=True, metavar="NAME", help="Count by this field; repeatable.")
@click.option("--encoding", metavar="NAME", help="Of the files, where it is not UTF-8 (or UTF-16 with its mark).")
@guarded
def analyze(
    words: tuple[str, ...],
    out: Path,
    text_field: str | None,
    prompt_field: str | None,
    correct_field: str | None,
    truth_field: str | None,
    group_fields: tuple[str, ...],
    encoding: str | None,
) -> None:
    """Count the loops in the generations of FILEs: a table here, a page and a record of each text in --out.

    No model and no torch is needed. KEY=VALUE sets a threshold of conf/loops.yaml (lit-illada config loops).
    """
    from lit_illada.loops.analyze import run
    from lit_illada.loops.records import Fields

    fields = Fields(text_field, prompt_field, correct_field, truth_field, group_fields)
    run(words, out, fields, encoding)

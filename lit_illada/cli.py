"""The commands. Each imports its room only when it runs, so that help and completion answer at once."""

import errno
import logging
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from lit_illada import __version__, completion
from lit_illada.errors import UserError

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

overrides_argument = click.argument(
    "overrides", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=completion.complete_override
)


def _run(command: Callable[..., None]) -> Callable[..., None]:
    """A user's mistake ends in one line; a bug keeps its traceback."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            if click.get_current_context().find_root().params["debug"]:
                raise
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror}") from error

    return wrapped


@click.group(context_settings=_CONTEXT, epilog="Start with:  lit-illada pretrain experiment=demo")
@click.version_option(__version__, prog_name="lit-illada")
@click.option("--debug", is_flag=True, help="Show tracebacks of user errors and debug logs.")
def main(debug: bool) -> None:
    """Pretrain, ablate and understand masked-diffusion language models (iLLaDA, LLaDA).

    Every command composes its config from the YAML files in conf/; write KEY=VALUE to override any value
    (model.num_hidden_layers=8) or to choose another file of a group (model=100m, objective/mask_ratio=cosine).
    """
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, format="%(message)s", stream=sys.stderr)
    # quiet the libraries, whose information is for their own developers
    for name in ("fsspec", "torch", "filelock", "matplotlib", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)


@main.command(
    epilog="""\b
Examples:
  lit-illada pretrain experiment=demo
  lit-illada pretrain data=text data.source.paths='[books/*.txt]' data.dir=data/books model=nano
  lit-illada pretrain experiment=demo objective/mask_ratio=cosine objective/weighting=flat
  lit-illada pretrain --resume runs/demo-20260101-120000 trainer.max_steps=2000
  lit-illada pretrain --init-from converted/llada data=prepared data.dir=data/docs
"""
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Go on with this run folder from its last checkpoint.",
)
@click.option(
    "--init-from",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT",
    help="Begin with these weights, and their model: a run, a converted folder or a checkpoint file.",
)
@overrides_argument
@_run
def pretrain(resume: Path | None, init_from: Path | None, overrides: tuple[str, ...]) -> None:
    """Pretrain a model: prepares the data where needed, trains, validates, saves.

    Curves, samples, checkpoints and the resolved config go to a new folder under runs/. Ctrl-C saves and stops.
    """
    from lit_illada import pretrain as command

    if init_from is not None:
        if resume is not None:
            raise UserError("give --resume or --init-from, not both: a resumed run has its weights")
        overrides = (*overrides, f"init_from='{init_from}'")
    command.run(overrides, resume)


@main.command(
    epilog="""\b
Examples:
  lit-illada sft runs/demo-20260101-120000 experiment=sft/demo
  lit-illada sft runs/demo-20260101-120000 sft_data=messages sft_data.source.paths='[chats.jsonl]' epochs=3
  lit-illada sft converted/llada sft_data/rows=llada objective=llada_sft optim=llada_sft adapter=lora
  lit-illada sft --resume runs/sft-20260101-130000
"""
)
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Go on with this run folder from its last checkpoint.",
)
@overrides_argument
@_run
def sft(checkpoint: Path | None, resume: Path | None, overrides: tuple[str, ...]) -> None:
    """Fine-tune the model of CHECKPOINT (a run, a converted folder or their file) on instructions.

    Without files it learns chained arithmetic, made on the spot; answers to held-out problems, as easy as those of
    training and harder ones, are checked at every validation.
    """
    from lit_illada import sft as command

    if resume is not None and checkpoint is not None:
        # click takes the first word for the checkpoint
        checkpoint, overrides = None, (str(checkpoint), *overrides)
    command.run(checkpoint, overrides, resume)


@main.command(
    epilog="""\b
Examples:
  lit-illada generate runs/demo-20260101-120000 --prompt 'def main():'
  lit-illada generate runs/demo-20260101-120000 --prompt-file prompt.txt generation.max_new_tokens=256
  echo 'import os' | lit-illada generate runs/demo-20260101-120000 generation.temperature=0.7 generation.seed=3
  lit-illada generate runs/demo-20260101-120000 --prompt 'def f(' generation=fast --trace f.jsonl --trace-picture f.png
  lit-illada generate runs/sft-20260101-130000 --chat --prompt 'a=1+1; a mod 2?'
"""
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--prompt", help="The text to continue; without it, --prompt-file or standard input.")
@click.option("--prompt-file", type=click.Path(path_type=Path), help="A file whose text is continued.")
@click.option("--live/--no-live", default=None, help="Show the text being unmasked (default: on a terminal).")
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.jsonl",
    help="Write when each token was committed, with what confidence and entropy, and the settings.",
)
@click.option(
    "--trace-picture",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Draw that: position along the text, denoising steps downwards.",
)
@click.option("--chat", "is_chat", is_flag=True, help="The prompt is a user's message; a fine-tuned model answers it.")
@overrides_argument
@_run
def generate(
    checkpoint: Path,
    prompt: str | None,
    prompt_file: Path | None,
    live: bool | None,
    trace: Path | None,
    trace_picture: Path | None,
    is_chat: bool,
    overrides: tuple[str, ...],
) -> None:
    """Continue a text with the model of CHECKPOINT: a run (its newest checkpoint), a converted folder, or its file.

    Blocks of [MASK] are appended and denoised until the model ends the text or the budget is spent; a causal model
    writes token by token. generation=llada denoises a fixed canvas, generation=fast several sure tokens a step.
    """
    from lit_illada import generate as command

    draw = None
    if trace_picture is not None:
        from lit_illada.generation.picture import draw_to

        draw = draw_to(trace_picture)
    command.run(checkpoint, prompt, prompt_file, live, overrides, trace, draw, is_chat)


@main.command(
    epilog="""\b
Examples:
  lit-illada convert GSAI-ML/LLaDA-8B-Base converted/llada --dtype bfloat16
  lit-illada convert models/Qwen2.5-0.5B converted/qwen --mask-token '<|mask|>'
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
@click.option("--mask-token", metavar="TEXT", help="Which token is [MASK]; one the tokenizer lacks is added to it.")
@click.option("--eos-token", metavar="TEXT", help="Which token ends a text, where the checkpoint does not say.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Default: as the weights are.")
@click.option("--max-shard-gb", type=click.FloatRange(min=0, min_open=True), default=5.0, show_default=True)
@click.option("--revision", help="Of the hub repository: a branch, tag or commit.")
@_run
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
    checkpoint runs. Shows what was mapped, and refuses a checkpoint with a tensor missing, left over or misshapen.
    """
    from lit_illada import convert as command

    command.run(source, destination, to, mask_token, eos_token, dtype, max_shard_gb, revision)


@main.command(
    epilog="""\b
Examples:
  lit-illada score runs/demo-20260101-120000 --task items.jsonl
  lit-illada score runs/demo-20260101-120000 --task items.jsonl score.rule=confidence score.limit=100
  lit-illada score runs/demo-20260101-120000 --task gsm8k/test.jsonl generation=paper_base
  lit-illada score runs/demo-20260101-120000 --text book.txt score.num_draws=256 score.context_length=64
  lit-illada score runs/demo-20260101-120000 --harness arc_easy --harness tasks/mine.yaml score.rule=bound
"""
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--task",
    "tasks",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="JSON lines: question, choices, answer; or, as in GSM8K, question and an answer with a number.",
)
@click.option(
    "--text", "texts", type=click.Path(path_type=Path), multiple=True, metavar="FILE", help="A text of any length."
)
@click.option(
    "--harness",
    multiple=True,
    metavar="NAME|YAML",
    help="A task of EleutherAI's lm-eval, or a file that describes one (needs the extra `eval`).",
)
@click.option(
    "--include-path", type=click.Path(path_type=Path), metavar="FOLDER", help="A folder with lm-eval tasks of your own."
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Default: scores/ in the run's folder.")
@overrides_argument
@_run
def score(
    checkpoint: Path,
    tasks: tuple[Path, ...],
    texts: tuple[Path, ...],
    harness: tuple[str, ...],
    include_path: Path | None,
    out: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Score tasks or texts with the model of CHECKPOINT: a run folder (its newest checkpoint) or a .ckpt file.

    Multiple choice is answered by every scoring rule the model has (or score.rule=NAME), with a table of their
    accuracies and agreement; a problem with a number by generation. A text, and an lm-eval task, is scored by the
    bound (its standard error is told), exactly for a causal model, or by score.rule=NAME. Items, scores and settings
    are written to a folder.
    """
    from lit_illada import score as command

    command.run(checkpoint, tasks, texts, harness, include_path, out, overrides)


@main.group()
def data() -> None:
    """Prepare, inspect and verify data sets."""


@data.command(
    "prepare",
    epilog="""\b
Examples:
  lit-illada data prepare
  lit-illada data prepare data=text data.source.paths='[corpus/]' data.dir=data/corpus
  lit-illada data prepare data=jsonl data.source.paths='[docs.jsonl.zst]' data.dir=data/docs data.num_processes=8
""",
)
@click.option("--overwrite", is_flag=True, help="Replace a finished data set in the same folder.")
@overrides_argument
@_run
def data_prepare(overwrite: bool, overrides: tuple[str, ...]) -> None:
    """Turn text into shards of tokens: train or load a tokenizer, remove duplicates, split, tokenise, write.

    A killed preparation goes on where it stopped when the command is given again.
    """
    from lit_illada import data_commands

    data_commands.prepare(overrides, overwrite)


@data.command("inspect", epilog="\b\nExample:\n  lit-illada data inspect data/stdlib\n")
@click.argument("folder", type=click.Path())
@_run
def data_inspect(folder: str) -> None:
    """Show a data set's sizes, its documents' lengths and a few of its rows."""
    from lit_illada import data_commands

    data_commands.inspect(folder)


@data.command("verify", epilog="\b\nExample:\n  lit-illada data verify data/stdlib\n")
@click.argument("folder", type=click.Path())
@_run
def data_verify(folder: str) -> None:
    """Check every shard of a data set against its manifest; name what is damaged and how to mend it."""
    from lit_illada import data_commands

    data_commands.verify(folder)


@data.command(
    "examples",
    epilog="""\b
Examples:
  lit-illada data examples runs/demo-20260101-120000
  lit-illada data examples runs/demo-20260101-120000 sft_data/rows=llada sft_data.source.recheck_fraction=1
  lit-illada data examples runs/demo-20260101-120000 sft_data=messages sft_data.source.paths='[chats.jsonl]'
""",
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--rows", "num_rows", type=click.IntRange(min=1), default=3, show_default=True)
@overrides_argument
@_run
def data_examples(folder: Path, num_rows: int, overrides: tuple[str, ...]) -> None:
    """Show rows of fine-tuning data as a model sees them, what it learns marked.

    FOLDER is a run, whose tokenizer is used, or a folder with a tokenizer.
    """
    from lit_illada import examples as command

    command.run(folder, overrides, num_rows)


@main.command(epilog="\b\nExample:\n  lit-illada config pretrain experiment=demo model.num_hidden_layers=8\n")
@click.argument("command", type=click.Choice(["pretrain", "sft", "generate", "score", "data", "examples"]))
@overrides_argument
@_run
def config(command: str, overrides: tuple[str, ...]) -> None:
    """Print the resolved config that COMMAND would run with."""
    from lit_illada.config import dump, load

    click.echo(dump(load(command, overrides)), nl=False)


@main.command(epilog="\b\nExample:\n  lit-illada board runs --port 6006\n")
@click.argument("runs", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--port", type=int, default=6006, show_default=True)
@click.option("--host", default="localhost", show_default=True)
@_run
def board(runs: Path, port: int, host: str) -> None:
    """Open TensorBoard on the runs folder."""
    from lit_illada import board as command

    command.serve(runs, host, port)


@main.command(epilog="\b\nExample:\n  lit-illada bench data loop --json bench.json\n")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures to this file.")
@_run
def bench(names: tuple[str, ...], json_file: Path | None) -> None:
    """Measure this machine: data, the loss's memory, the training loop's overhead, generation.

    Without NAME, all of them. Every figure is a median with its spread; ratios come from alternating runs.
    """
    from lit_illada.bench.run import run

    run(names, json_file)


@main.command("completion", epilog="\b\nExample:\n  lit-illada completion bash >> ~/.bashrc\n")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the script that completes commands, options and config groups in SHELL."""
    click.echo(completion.script(main, shell))


if __name__ == "__main__":
    main()

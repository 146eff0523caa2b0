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
"""
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Go on with this run folder from its last checkpoint.",
)
@overrides_argument
@_run
def pretrain(resume: Path | None, overrides: tuple[str, ...]) -> None:
    """Pretrain a model: prepares the data where needed, trains, validates, saves.

    Curves, samples, checkpoints and the resolved config go to a new folder under runs/. Ctrl-C saves and stops.
    """
    from lit_illada import pretrain as command

    command.run(overrides, resume)


@main.command(
    epilog="""\b
Examples:
  lit-illada generate runs/demo-20260101-120000 --prompt 'def main():'
  lit-illada generate runs/demo-20260101-120000 --prompt-file prompt.txt generation.max_new_tokens=256
  echo 'import os' | lit-illada generate runs/demo-20260101-120000 generation.temperature=0.7 generation.seed=3
"""
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--prompt", help="The text to continue; without it, --prompt-file or standard input.")
@click.option("--prompt-file", type=click.Path(path_type=Path), help="A file whose text is continued.")
@click.option("--live/--no-live", default=None, help="Show the text being unmasked (default: on a terminal).")
@overrides_argument
@_run
def generate(
    checkpoint: Path, prompt: str | None, prompt_file: Path | None, live: bool | None, overrides: tuple[str, ...]
) -> None:
    """Continue a text with the model of CHECKPOINT: a run folder (its newest checkpoint) or a .ckpt file.

    Blocks of [MASK] are appended and denoised until the model ends the text or the budget is spent.
    """
    from lit_illada import generate as command

    command.run(checkpoint, prompt, prompt_file, live, overrides)


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


@main.command(epilog="\b\nExample:\n  lit-illada config pretrain experiment=demo model.num_hidden_layers=8\n")
@click.argument("command", type=click.Choice(["pretrain", "generate", "score", "data"]))
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
    """Measure this machine: data preparation and reading, the loss's memory, the training loop's overhead.

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

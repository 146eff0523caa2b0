"""What helps beside training: `config`, `board`, `bench`, `completion`."""

from pathlib import Path

import click

from lit_illada import completion
from lit_illada.cli.frame import guarded, overrides_argument


@click.command(epilog="\b\nExample:\n  lit-illada config pretrain experiment=demo model.num_hidden_layers=8\n")
@click.argument("command", type=click.Choice(["pretrain", "sft", "generate", "score", "data", "examples", "loops"]))
@overrides_argument
@guarded
def config(command: str, overrides: tuple[str, ...]) -> None:
    """Print the resolved config that COMMAND would run with."""
    from lit_illada.config import load
    from lit_illada.tree import dump

    click.echo(dump(load(command, overrides)), nl=False)


@click.command(epilog="\b\nExample:\n  lit-illada board runs --port 6006\n")
@click.argument("runs", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--port", type=int, default=6006, show_default=True)
@click.option("--host", default="localhost", show_default=True)
@guarded
def board(runs: Path, port: int, host: str) -> None:
    """Open TensorBoard on the runs folder."""
    from lit_illada import board as command

    command.serve(runs, host, port)


@click.command(
    epilog="""\b
Examples:
  lit-illada bench data loop --json bench.json
  lit-illada bench answers --checkpoint runs/sft-20260101-130000
"""
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures to this file.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="A fine-tuned run: `answers` measures how fast it answers its held-out problems, and how rightly.",
)
@guarded
def bench(names: tuple[str, ...], json_file: Path | None, checkpoint: Path | None) -> None:
    """Measure this machine: data, the loss's memory, the training loop's overhead, generation.

    Without NAME, all of them. Every figure is a median with its spread; ratios come from alternating runs.
    """
    from lit_illada.bench.run import run

    run(names, json_file, checkpoint)


@click.command("completion", epilog="\b\nExample:\n  lit-illada completion bash >> ~/.bashrc\n")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the script that completes commands, options and config groups in SHELL."""
    click.echo(completion.script(click.get_current_context().find_root().command, shell))

"""`data prepare`, `inspect`, `verify` and `examples`."""

from pathlib import Path

import click

from lit_illada.cli.frame import guarded, overrides_argument


@click.group()
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
@guarded
def data_prepare(overwrite: bool, overrides: tuple[str, ...]) -> None:
    """Turn text into shards of tokens: train or load a tokenizer, remove duplicates, split, tokenise, write.

    A killed preparation goes on where it stopped when the command is given again.
    """
    from lit_illada import data_commands

    data_commands.prepare(overrides, overwrite)


@data.command("inspect", epilog="\b\nExample:\n  lit-illada data inspect data/stdlib\n")
@click.argument("folder", type=click.Path())
@guarded
def data_inspect(folder: str) -> None:
    """Show a data set's sizes, its documents' lengths and a few of its rows."""
    from lit_illada import data_commands

    data_commands.inspect(folder)


@data.command("verify", epilog="\b\nExample:\n  lit-illada data verify data/stdlib\n")
@click.argument("folder", type=click.Path())
@guarded
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
@guarded
def data_examples(folder: Path, num_rows: int, overrides: tuple[str, ...]) -> None:
    """Show rows of fine-tuning data as a model sees them, what it learns marked.

    FOLDER is a run, whose tokenizer is used, or a folder with a tokenizer.
    """
    from lit_illada import examples as command

    command.run(folder, overrides, num_rows)

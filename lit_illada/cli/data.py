"""Commands on data sets: `data prepare`, `part`, `inspect`, `verify` and `examples`."""

from pathlib import Path

import click

from lit_illada.cli.frame import guarded, overrides_argument, refuse_early
from lit_illada.errors import UserError
from lit_illada.run_folder import RunFolder


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
  lit-illada data prepare data=jsonl data.source.paths='[crawl/]' data.dir=data/crawl --workers 16
""",
)
@click.option("--overwrite", is_flag=True, help="Replace a finished data set in the same folder.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Divide the files among N processes that read and tokenise; by default one reads and all cores tokenise.",
)
@overrides_argument
@guarded
def data_prepare(overwrite: bool, workers: int | None, overrides: tuple[str, ...]) -> None:
    """Turn text into shards of tokens: train or load a tokenizer, remove duplicates, split, tokenise, write.

    The same command resumes a killed preparation. The shards are byte-identical however the work is divided; lit-illada
    launch data divides it among the nodes of a cluster.
    """
    from lit_illada.commands.data import run_preparation

    run_preparation(overrides, overwrite, workers)


@data.command(
    "part",
    epilog="""\b
Examples, of a preparation in two parts; both scans may run at once, both writes too:
  lit-illada data part scan --part 0/2 data=text data.source.paths='[corpus/]' data.dir=data/corpus
  lit-illada data part scan --part 1/2 data=text data.source.paths='[corpus/]' data.dir=data/corpus
  lit-illada data part plan --part 0/2 data=text data.source.paths='[corpus/]' data.dir=data/corpus
  lit-illada data part write --part 0/2 data=text data.source.paths='[corpus/]' data.dir=data/corpus
  lit-illada data part write --part 1/2 data=text data.source.paths='[corpus/]' data.dir=data/corpus
  lit-illada data part merge --part 0/2 data=text data.source.paths='[corpus/]' data.dir=data/corpus
""",
)
@click.argument("step", type=click.Choice(["scan", "plan", "write", "merge"]))
@click.option("--part", required=True, metavar="INDEX/COUNT", help="Which part, from 0, of how many.")
@overrides_argument
@guarded
def data_part(step: str, part: str, overrides: tuple[str, ...]) -> None:
    """Run one STEP of a preparation divided among machines that share data.dir.

    For schedulers other than Slurm: run all parts of scan, then plan once, all parts of write, merge once.
    """
    from lit_illada.commands.data import prepare_part

    prepare_part(step, part, overrides)


@data.command("inspect", epilog="\b\nExample:\n  lit-illada data inspect data/stdlib\n")
@click.argument("folder", type=click.Path())
@guarded
def data_inspect(folder: str) -> None:
    """Show a data set's sizes, its documents' lengths and a few of its rows."""
    from lit_illada.commands.data import print_inspection

    print_inspection(folder)


@data.command("verify", epilog="\b\nExample:\n  lit-illada data verify data/stdlib\n")
@click.argument("folder", type=click.Path())
@guarded
def data_verify(folder: str) -> None:
    """Check every shard of a data set against its manifest; name damaged shards and the fix."""
    from lit_illada.commands.data import print_verification

    print_verification(folder)


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
    """Show rows of fine-tuning data as a model sees them, with the trained tokens marked.

    FOLDER is a run (its tokenizer is used) or a folder with a tokenizer.
    """
    refuse_early("examples", overrides)
    if not (RunFolder(folder).tokenizer.is_dir() or (folder / "tokenizer.json").is_file()):
        raise UserError(f"no tokenizer at {folder}: {folder / 'tokenizer.json'} does not exist")

    from lit_illada.commands.data_examples import run_examples

    run_examples(folder, overrides, num_rows)

"""Prints rows of fine-tuning data as the model sees them, with segments and trained tokens marked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from lit_illada.batch import TokenBatch
from lit_illada.checkpoints.open import WEIGHTS_FILE, open_checkpoint
from lit_illada.config import load
from lit_illada.data.sft_datamodule import SFTDataModule
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.console import Console
from lit_illada.runtime.terminal import print_lines
from lit_illada.training.checkpointing.files import latest_checkpoint


@dataclass(frozen=True)
class Span:
    """Adjacent tokens of one segment that are all maskable, or all not."""

    text: str
    num_tokens: int
    is_maskable: bool
    starts_segment: bool  # attention does not cross to the preceding span


def run_examples(folder: Path, overrides: Sequence[str], num_rows: int) -> None:
    """Print the first `num_rows` training rows. folder: a run, or a folder with a tokenizer."""
    datamodule = SFTDataModule(
        load("examples", overrides).sft_data,
        _tokenizer(folder),
        seed=0,
        batch_rows=num_rows,
        micro_batch_rows=1,
        total_steps=1,
        validation_rows=0,
    )
    console = Console(highlight=False)
    for batch in datamodule.train_dataloader():
        console.rule(f"row {int(batch.row_ids[0])}, {batch.input_ids.shape[1]} tokens", align="left")
        marked = [_marked(span, console.is_terminal) for span in spans(batch, 0, datamodule.tokenizer)]
        console.print(*marked, sep="", soft_wrap=True)
    console.rule(align="left")
    learnt = "green" if console.is_terminal else "in ⟦ ⟧"
    print_lines(f"trained tokens are {learnt}; ‖ starts a segment, which cannot attend to others")
    print_lines(f"an epoch has {datamodule.rows_per_epoch:,} rows; {datamodule.left_out.bad:,} bad examples skipped")
    for message in datamodule.left_out.examples:
        print_lines(f"  {message}")


def spans(batch: TokenBatch, row: int, tokenizer: Tokenizer) -> list[Span]:
    """The spans of a row of a batch, in order."""
    return [
        Span(tokenizer.decode(ids), len(ids), is_maskable, starts_segment)
        for ids, is_maskable, starts_segment in _runs(batch, row)
    ]


def _tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a run, checked against its checkpoint if there is one, or of a folder with tokenizer.json."""
    run = RunFolder(folder)
    if not run.tokenizer.is_dir():
        return Tokenizer.load(folder)
    has_weights = latest_checkpoint(run.checkpoints) or (run.checkpoints / WEIGHTS_FILE).exists()
    return open_checkpoint(folder).tokenizer if has_weights else Tokenizer.load(run.tokenizer)


def _marked(span: Span, has_colour: bool) -> Text:
    border = "‖" if span.starts_segment else ""
    if has_colour:
        return Text.assemble(border, (span.text, "green" if span.is_maskable else "dim"))
    return Text(f"{border}⟦{span.text}⟧" if span.is_maskable else f"{border}{span.text}")


def _runs(batch: TokenBatch, row: int) -> Iterator[tuple[list[int], bool, bool]]:
    ids = batch.input_ids[row].tolist()
    is_maskable = batch.is_maskable[row].tolist()
    is_start = (batch.layout.position_ids[row] == 0).tolist()
    changes = [t for t in range(1, len(ids)) if is_start[t] or is_maskable[t] != is_maskable[t - 1]]
    for start, end in zip([0, *changes], [*changes, len(ids)], strict=True):
        yield ids[start:end], is_maskable[start], is_start[start]

"""Runs the `pretrain` command."""

from collections.abc import Sequence
from pathlib import Path

from lit_illada import build
from lit_illada.checkpoints.open import Checkpoint, open_checkpoint
from lit_illada.checkpoints.start import check_fits, load_pretrain
from lit_illada.commands.data import prepare_dataset
from lit_illada.commands.resume import open_run
from lit_illada.commands.training_run import check_hardware, train
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.console import Console


def run_pretrain(overrides: Sequence[str], resume: Path | None = None) -> None:
    """Start a pretraining run, or resume one."""
    folder: RunFolder | None = None
    start: Path | Checkpoint | None
    if resume is None:
        config, start = load_pretrain(overrides)
    else:
        config, folder, start = open_run("pretrain", resume, overrides)
    if start is None and config.init_from is not None:  # resumed before its first checkpoint, or named by a YAML file
        start = open_checkpoint(Path(config.init_from))
    check_hardware(config, config.data.row_length)
    console = Console(stderr=True)
    prepare_dataset(config.data, console)
    datamodule = build.build_datamodule(config)
    config = config.resolve(datamodule.tokenizer.vocab_size)
    # data that cannot be trained on is rejected before a folder is made
    datamodule.train_dataloader()
    datamodule.val_dataloader()
    if isinstance(start, Checkpoint):
        check_fits(start, config.model, datamodule.tokenizer)
    train(config, folder, datamodule, start, console)

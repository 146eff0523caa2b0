"""Runs the `sft` command."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lit_illada import build
from lit_illada.checkpoints.open import Checkpoint, load_sft, open_checkpoint
from lit_illada.commands.resume import open_run
from lit_illada.commands.training_run import check_hardware, new_folder, train
from lit_illada.config import SFTConfig
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.console import Console


def run(base: Path | None, overrides: Sequence[str], resume: Path | None = None) -> None:
    """Fine-tune the model of the checkpoint `base`, or resume a fine-tuning run."""
    folder: RunFolder | None = None
    config: SFTConfig
    start: Path | Checkpoint | None
    if resume is not None:
        config, folder, start = open_run("sft", resume, overrides)
        tokenizer = Tokenizer.load(folder.tokenizer)
        if start is None:  # killed before its first checkpoint
            assert config.init_from is not None, "set by load_sft"
            start = open_checkpoint(Path(config.init_from))
    elif base is not None:
        config, start = load_sft(base, overrides)
        tokenizer = start.tokenizer
    else:
        raise UserError("nothing to fine-tune: give a checkpoint, or --resume RUN")
    check_hardware(config, config.sft_data.row_length)
    datamodule = build.build_sft_datamodule(config, tokenizer)
    config = config.resolve(datamodule.steps)
    datamodule.total_steps = config.trainer.max_steps
    # data that cannot be trained on is rejected before a folder is made
    datamodule.train_dataloader()
    datamodule.val_dataloader()
    if folder is None:
        folder = new_folder(config, tokenizer)
    train(dataclasses.replace(config, run_dir=str(folder.path)), folder, datamodule, start, Console(stderr=True))

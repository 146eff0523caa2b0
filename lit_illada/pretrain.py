"""The `pretrain` command: data, model and objective in, a run out."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lit_illada import build, data_commands
from lit_illada.checkpoints import check_fits, open_checkpoint, with_model_of_init
from lit_illada.config import load, load_file
from lit_illada.fit import check_same_model, fit, new_folder
from lit_illada.run_folder import RunFolder
from lit_illada.training.checkpoint import latest_checkpoint


def run(overrides: Sequence[str], resume: Path | None = None) -> None:
    """Run, or go on with, a pretraining."""
    if resume is None:
        config = load("pretrain", with_model_of_init(overrides))
        folder, checkpoint = None, None
    else:
        folder = RunFolder.open(resume)
        config = load_file("pretrain", folder.config, overrides)
        checkpoint = latest_checkpoint(folder.checkpoints)
    console = Console(stderr=True)
    config.trainer.accelerator.resolve()
    data_commands.prepare_dataset(config.data, console)
    datamodule = build.build_datamodule(config)
    config = build.resolve(config, datamodule.tokenizer)
    # what cannot be trained on is refused before a folder is made
    datamodule.train_dataloader()
    datamodule.val_dataloader()
    if checkpoint is not None:
        check_same_model(config, checkpoint)
    elif config.init_from is not None:
        check_fits(open_checkpoint(Path(config.init_from)), config.model, datamodule.tokenizer)
    if folder is None:
        folder = new_folder(config, datamodule.tokenizer)
    fit(dataclasses.replace(config, run_dir=str(folder.path)), folder, datamodule, checkpoint, console)

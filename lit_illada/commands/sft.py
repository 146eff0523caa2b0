"""Runs the `sft` command."""

from collections.abc import Sequence
from pathlib import Path

from lit_illada import build
from lit_illada.checkpoints.start import load_sft
from lit_illada.commands.resume import open_tuning
from lit_illada.commands.training_run import check_hardware, train
from lit_illada.config import SFTConfig
from lit_illada.runtime.console import Console


def run_sft(base: Path | None, overrides: Sequence[str], resume: Path | None = None) -> None:
    """Fine-tune the model of the checkpoint `base`, or resume a fine-tuning run."""
    config: SFTConfig
    config, folder, start, tokenizer = open_tuning("sft", base, overrides, resume, load_sft)
    check_hardware(config, config.sft_data.row_length)
    datamodule = build.build_sft_datamodule(config, tokenizer)
    config = config.resolve(datamodule.steps)
    datamodule.total_steps = config.trainer.max_steps
    # data that cannot be trained on is rejected before a folder is made
    datamodule.train_dataloader()
    datamodule.val_dataloader()
    train(config, folder, datamodule, start, Console(stderr=True))

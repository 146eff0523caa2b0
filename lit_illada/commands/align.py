"""Runs the `align` command."""

from collections.abc import Sequence
from pathlib import Path

from lit_illada import build
from lit_illada.checkpoints.start import load_align
from lit_illada.commands.resume import open_tuning
from lit_illada.commands.training_run import check_hardware, train
from lit_illada.config import AlignConfig
from lit_illada.runtime.console import Console


def run_align(base: Path | None, overrides: Sequence[str], resume: Path | None = None) -> None:
    """Align the model of the checkpoint `base`, or resume an alignment run."""
    config: AlignConfig
    config, folder, start, tokenizer = open_tuning("align", base, overrides, resume, load_align)
    config = config.resolve()
    check_hardware(config, config.generation.max_new_tokens)
    # prompts that cannot be used are rejected before a folder is made
    datamodule = build.build_align_datamodule(config, tokenizer)
    train(config, folder, datamodule, start, Console(stderr=True))

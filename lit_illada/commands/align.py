"""Runs the `align` command."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lit_illada import build
from lit_illada.checkpoints.open import Checkpoint, load_align, open_checkpoint
from lit_illada.commands.resume import open_run
from lit_illada.commands.training_run import check_hardware, new_folder, train
from lit_illada.config import AlignConfig
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.console import Console


def run(base: Path | None, overrides: Sequence[str], resume: Path | None = None) -> None:
    """Align the model of the checkpoint `base`, or resume an alignment run."""
    folder: RunFolder | None = None
    config: AlignConfig
    start: Path | Checkpoint | None
    if resume is not None:
        config, folder, start = open_run("align", resume, overrides)
        config = config.resolve()
        tokenizer = Tokenizer.load(folder.tokenizer)
        if start is None:  # killed before its first checkpoint
            assert config.init_from is not None, "set by load_align"
            start = open_checkpoint(Path(config.init_from))
    elif base is not None:
        config, start = load_align(base, overrides)
        tokenizer = start.tokenizer
    else:
        raise UserError("nothing to align: give a checkpoint, or --resume RUN")
    check_hardware(config, config.generation.max_new_tokens)
    # prompts that cannot be used are rejected before a folder is made
    datamodule = build.build_align_datamodule(config, tokenizer)
    if folder is None:
        folder = new_folder(config, tokenizer)
    train(dataclasses.replace(config, run_dir=str(folder.path)), folder, datamodule, start, Console(stderr=True))

"""A pretraining run from its config to its curves, samples, checkpoints and summary."""

import dataclasses
import json
import math
import os
import signal
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from lit_illada import build, data_commands
from lit_illada.config import PretrainConfig, dump, load, load_file, to_tree
from lit_illada.data.datamodule import PackedDataModule
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.run_folder import RunFolder
from lit_illada.training.checkpoint import latest_checkpoint, read_checkpoint
from lit_illada.training.tensorboard import begin_board

_RUN_DIR = "LIT_ILLADA_RUN_DIR"


def run(overrides: Sequence[str], resume: Path | None = None) -> None:
    """Run, or go on with, a pretraining; print where its curves and samples are."""
    now = datetime.now()
    if resume is None:
        config = load("pretrain", overrides)
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
    # data that cannot fill a row is refused before a folder is made
    datamodule.train_dataloader()
    datamodule.val_dataloader()
    if checkpoint is not None:
        _check_same_model(config, checkpoint)
    if folder is None:
        folder = _new_folder(config, datamodule.tokenizer, now)
    config = dataclasses.replace(config, run_dir=str(folder.path))
    if _is_rank_zero():
        folder.config.write_text(dump(config), encoding="utf-8")
        folder.write_provenance(now)
    stopped_by = train(config, folder, datamodule, checkpoint, console)
    if stopped_by is not None:
        raise SystemExit(128 + stopped_by)


def _new_folder(config: PretrainConfig, tokenizer: Tokenizer, now: datetime) -> RunFolder:
    """Made by rank 0; the processes it starts find its name in the environment."""
    if not _is_rank_zero():
        return RunFolder(Path(config.run_dir or os.environ[_RUN_DIR]))
    folder = RunFolder.create(config.run_dir, config.name, now)
    tokenizer.save(folder.tokenizer)
    os.environ[_RUN_DIR] = str(folder.path)
    return folder


def train(
    config: PretrainConfig, folder: RunFolder, datamodule: PackedDataModule, checkpoint: Path | None, console: Console
) -> signal.Signals | None:
    """Train to the end of the config's steps, from the checkpoint if there is one. Returns the signal that ended the
    run early, if one did."""
    started_at = time.perf_counter()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    module = build.build_module(config, datamodule)
    trainer, stop = build.build_trainer(config, folder, module, datamodule.tokenizer, console)
    if checkpoint is None:
        if trainer.is_global_zero:
            begin_board(trainer.logger, to_tree(config))  # type: ignore[arg-type]
        trainer.validate(module, datamodule=datamodule, verbose=False)
        _append_summary(folder, "start", trainer)
    trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    is_finished = trainer.global_step >= trainer.max_steps
    if is_finished and trainer.global_step % config.trainer.val_every_steps:
        trainer.validate(module, datamodule=datamodule, verbose=False)
    _append_summary(folder, "end", trainer)
    if trainer.is_global_zero:
        _report(folder, trainer, time.perf_counter() - started_at, console)
    return None if is_finished else stop.signal


def _is_rank_zero() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _check_same_model(config: PretrainConfig, checkpoint: Path) -> None:
    saved = read_checkpoint(checkpoint)["hyper_parameters"]["config"]["model"]
    asked = to_tree(config.model)
    different = sorted(key for key in asked if saved.get(key) != asked[key])
    if different:
        listed = ", ".join(f"{key}: {saved.get(key)} there, {asked[key]} asked" for key in different)
        raise UserError(f"{checkpoint} is a checkpoint of another model ({listed})")


def _append_summary(folder: RunFolder, key: str, trainer: pl.Trainer) -> None:
    if not trainer.is_global_zero:
        return
    figures = json.loads(folder.summary.read_text(encoding="utf-8")) if folder.summary.exists() else {}
    figures[key] = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
    figures[key]["step"] = trainer.global_step
    folder.write_summary(figures)


def _report(folder: RunFolder, trainer: pl.Trainer, elapsed_s: float, console: Console) -> None:
    figures = json.loads(folder.summary.read_text(encoding="utf-8"))
    start, end = figures.get("start", {}), figures["end"]
    table = Table(title=f"{folder.path}, step {trainer.global_step}, {elapsed_s:.0f} s", title_justify="left")
    for heading in ("held-out text", "at the start", "now"):
        table.add_column(heading, justify="left" if heading == "held-out text" else "right")
    rows = {
        "bound, nats a token": "val/nll_bound",
        "  its standard error": "val/nll_bound_stderr",
        "bits a byte": "val/bits_per_byte",
        "unigram entropy, nats a token": "val/unigram_entropy",
    }
    for label, name in rows.items():
        table.add_row(label, *(f"{values.get(name, math.nan):.4f}" for values in (start, end)))
    console.print(table)
    console.print(f"curves       lit-illada board {folder.path.parent}", highlight=False)
    console.print(f"samples      {folder.samples}", highlight=False)
    console.print(f"generate     lit-illada generate {folder.path} --prompt 'import '", highlight=False)
    if trainer.global_step < trainer.max_steps:
        console.print(f"stopped      go on with: lit-illada pretrain --resume {folder.path}", highlight=False)

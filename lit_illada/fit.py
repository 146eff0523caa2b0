"""A training run on screen and on disk: its folder, its course, its summary. Pretraining and fine-tuning share it."""

import json
import math
import os
import time
from datetime import datetime
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from lit_illada import build
from lit_illada.config import PretrainConfig, RunConfig, SFTConfig, dump, to_tree
from lit_illada.data.row_datamodule import RowDataModule
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.run_folder import RunFolder
from lit_illada.training.checkpoint import read_checkpoint
from lit_illada.training.tensorboard import begin_board

_RUN_DIR = "LIT_ILLADA_RUN_DIR"
_EXACT = "val/exact_match_"


def fit(
    config: PretrainConfig | SFTConfig,
    folder: RunFolder,
    datamodule: RowDataModule,
    checkpoint: Path | None,
    console: Console,
) -> None:
    """Train to the end of the config's steps, from the run's checkpoint if there is one, and report.

    Exits with 128 + its number when a signal ended the run early.
    """
    now, started_at = datetime.now(), time.perf_counter()
    if _is_rank_zero():
        folder.config.write_text(dump(config), encoding="utf-8")
        folder.write_provenance(now)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    module = build.build_module(config, datamodule, is_resumed=checkpoint is not None)
    trainer, stop = build.build_trainer(config, folder, module, datamodule, console)
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
        _report(folder, trainer, config, time.perf_counter() - started_at, console)
    if not is_finished and stop.signal is not None:
        raise SystemExit(128 + stop.signal)


def new_folder(config: RunConfig, tokenizer: Tokenizer) -> RunFolder:
    """Made by rank 0; the processes it starts find its name in the environment."""
    if not _is_rank_zero():
        return RunFolder(Path(config.run_dir or os.environ[_RUN_DIR]))
    folder = RunFolder.create(config.run_dir, config.name, datetime.now())
    tokenizer.save(folder.tokenizer)
    os.environ[_RUN_DIR] = str(folder.path)
    return folder


def check_same_model(config: RunConfig, checkpoint: Path) -> None:
    """Raises UserError when a run's checkpoint, to be gone on with, is not of the config's model."""
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


def _report(folder: RunFolder, trainer: pl.Trainer, config: RunConfig, elapsed_s: float, console: Console) -> None:
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
    for level in (name.removeprefix(_EXACT) for name in end if name.startswith(_EXACT) and f"{name}_low" in end):
        table.add_row(
            f"exact match, {level} problems", *(_interval(values, f"{_EXACT}{level}") for values in (start, end))
        )
    console.print(table)
    told = {"curves": f"lit-illada board {folder.path.parent}"}
    if isinstance(config, SFTConfig):
        command = "sft"
        told |= {"answers": str(folder.answers)}
    else:
        command = "pretrain"
        told |= {"samples": str(folder.samples), "generate": f"lit-illada generate {folder.path} --prompt 'import '"}
    if trainer.global_step < trainer.max_steps:
        told["stopped"] = f"go on with: lit-illada {command} --resume {folder.path}"
    for what, text in told.items():
        console.print(f"{what:<12} {text}", highlight=False, soft_wrap=True)


def _interval(values: dict[str, float], name: str) -> str:
    if name not in values:
        return ""
    return f"{values[name]:.1%} ({values[f'{name}_low']:.0%}–{values[f'{name}_high']:.0%})"


def _is_rank_zero() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0

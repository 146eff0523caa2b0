"""A training run on screen and on disk: its folder, its course, its summary. Pretraining and fine-tuning share it."""

import dataclasses
import gc
import logging
import os
import shlex
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from torch.distributed.tensor import DTensor

from lit_illada import build
from lit_illada.checkpoints.open import open_checkpoint
from lit_illada.config import PretrainConfig, RunConfig, SFTConfig, load_file
from lit_illada.data.row_datamodule import RowDataModule
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.run_folder import RunFolder
from lit_illada.runtime import ranks as processes
from lit_illada.schema import dump, to_tree
from lit_illada.training.callbacks.divergence import Diverged
from lit_illada.training.callbacks.stopping import GracefulStop
from lit_illada.training.callbacks.tensorboard import begin_board, draw_unigram_line
from lit_illada.training.callbacks.throughput import Throughput
from lit_illada.training.checkpointing import rollback
from lit_illada.training.checkpointing.files import latest_checkpoint, remove_partials, step_of
from lit_illada.training.checkpointing.reading import read_checkpoint
from lit_illada.training.checkpointing.saving import Checkpoints
from lit_illada.training.distributed.rank_watch import RankWatch
from lit_illada.training.loggers import begin_records, continue_records, end_records
from lit_illada.training.module import PretrainModule
from lit_illada.training.record import record_files, truncate_records

log = logging.getLogger(__name__)
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

    A run that diverges and is to roll back goes on from an earlier checkpoint. Exits with 128 + its number when a
    signal ended the run early.
    """
    stop = GracefulStop()
    with _alone_in(folder), RankWatch(folder.ranks, config.trainer.timeout_s) as watch:
        is_finished = None
        with stop.handle_signals():
            while is_finished is None:
                try:
                    is_finished = _fit(config, folder, datamodule, checkpoint, console, watch, stop)
                except Diverged as divergence:
                    config = _roll_back(config, folder, datamodule, divergence)
                    checkpoint = divergence.checkpoint
                except (MemoryError, RuntimeError) as error:
                    if _is_out_of_memory(error):
                        raise UserError(_out_of_memory(config, error)) from error
                    raise
                if is_finished is None:
                    _collect_garbage()  # not before: the exception's traceback holds the fit that has ended
        if not is_finished and stop.signal is not None:
            if stop.signal is signal.SIGUSR1:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise SystemExit(128 + stop.signal)


@contextmanager
def _alone_in(folder: RunFolder) -> Iterator[None]:
    """Rank 0 keeps other runs out of the folder, for all ranks, and removes what a killed one has left."""
    if not _is_rank_zero():
        yield
        return
    with folder.held():
        remove_partials(folder.checkpoints)
        yield


def _fit(
    config: PretrainConfig | SFTConfig,
    folder: RunFolder,
    datamodule: RowDataModule,
    checkpoint: Path | None,
    console: Console,
    watch: RankWatch,
    stop: GracefulStop,
) -> bool:
    """Whether the run is finished."""
    started_at = time.perf_counter()
    record = record_files(folder.path) if _is_rank_zero() else []
    if checkpoint is None:
        if folder.provenance.exists():  # a process was killed before the first checkpoint
            truncate_records(record, {}, step=-1)
        _record(config, folder, datamodule)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    datamodule.skipped_rows = [tuple(rows) for each in folder.read_rollbacks() if (rows := each["skipped_rows"])]
    module = build.build_module(config, datamodule, is_resumed=checkpoint is not None)
    trainer, time_limit = build.build_trainer(config, folder, module, datamodule, console, stop)
    trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    throughput = next(callback for callback in trainer.callbacks if isinstance(callback, Throughput))  # type: ignore[attr-defined]
    if checkpoint is None:
        if trainer.is_global_zero:
            begin_records(trainer.loggers, to_tree(config))
            begin_board(trainer.logger, to_tree(config), folder.read_labels())  # type: ignore[arg-type]
            row_length = (config.sft_data if isinstance(config, SFTConfig) else config.data).row_length
            num_tokens = config.trainer.max_steps * config.trainer.batch_rows * row_length
            draw_unigram_line(trainer.logger, module.unigram_cross_entropy, config.trainer.max_steps, num_tokens)  # type: ignore[arg-type]
        trainer.validate(module, datamodule=datamodule, verbose=False)
        _append_summary(folder, "start", trainer, module, {})
    continuation = _Continuation(config, folder, datamodule, record)
    if checkpoint is not None:
        trainer.callbacks.append(continuation)  # type: ignore[attr-defined]
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    except Diverged:
        _release(trainer, module)
        raise
    if checkpoint is not None:
        continuation.begin(trainer)  # Lightning starts no training where no step is left
    is_finished = trainer.global_step >= trainer.max_steps or (time_limit is not None and time_limit.is_reached)
    if is_finished and module.validated_at != trainer.global_step:
        trainer.limit_val_batches = 1.0  # all of them, also where a signal in the last step has called validation off
        trainer.validate(module, datamodule=datamodule, verbose=False)
    _append_summary(folder, "end", trainer, module, throughput.cost())
    if trainer.is_global_zero:
        _report(folder, trainer, config, time.perf_counter() - started_at, is_finished, console)
    end_records(trainer.loggers)
    # torchrun treats an early exit as a failure, so ranks leave together
    trainer.strategy.barrier()
    return is_finished


class _Continuation(Callback):
    """Takes the run's record back to the checkpoint, and notes the resume in the folder.

    Not before Lightning has read the checkpoint: a resume that is refused leaves the run as it was.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, datamodule: RowDataModule, record: Sequence[Path]) -> None:
        self._config, self._folder, self._datamodule, self._record = config, folder, datamodule, record
        self._has_begun = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begin(trainer)

    def begin(self, trainer: pl.Trainer) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        checkpoints = trainer.checkpoint_callback
        assert isinstance(checkpoints, Checkpoints)
        if checkpoints.record_sizes is not None:
            truncate_records(self._record, checkpoints.record_sizes, trainer.global_step)
        continue_records(trainer.loggers, trainer.global_step)
        _record(self._config, self._folder, self._datamodule)


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's CPU allocator has no exception of its own
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _out_of_memory(config: PretrainConfig | SFTConfig, error: BaseException) -> str:
    device = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "this machine"
    command = f"sft {shlex.quote(str(config.init_from))}" if isinstance(config, SFTConfig) else "pretrain"
    detail = " ".join(str(error).split())[:160]
    return (
        f"out of memory on {device} ({detail}): lower trainer.micro_batch_rows (now {config.trainer.micro_batch_rows}; "
        f"trainer.batch_rows and the results stay as they are), or the model; `lit-illada estimate {command}`, "
        "with the same overrides, tells what a step needs"
    )


def _release(trainer: pl.Trainer, module: PretrainModule) -> None:
    """Let go of weights and moments, whoever still refers to them: the next fit needs the room."""
    for optimizer in trainer.optimizers:
        optimizer.state.clear()
        optimizer.zero_grad(set_to_none=True)
    for parameter in module.parameters():
        if isinstance(parameter, DTensor):  # what shards it keeps views of its own
            parameter.to_local().untyped_storage().resize_(0)
    if not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        module.to_empty(device=torch.device("meta"))
    # what outlives the fit lets go of it: the data module, and callbacks, which Lightning gives the module's methods
    trainer.datamodule.trainer = None  # type: ignore[attr-defined]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for name in ("log", "log_dict"):
            vars(callback).pop(name, None)


def _collect_garbage() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _roll_back(
    config: PretrainConfig | SFTConfig, folder: RunFolder, datamodule: RowDataModule, divergence: Diverged
) -> PretrainConfig | SFTConfig:
    """The config to go on with: the learning rate lowered. Takes the diverged checkpoints out of the way."""
    step, response = step_of(divergence.checkpoint), divergence.response
    optimizer = config.optim.optimizer
    learning_rate = optimizer.learning_rate * response.learning_rate_factor
    optim = dataclasses.replace(config.optim, optimizer=dataclasses.replace(optimizer, learning_rate=learning_rate))
    rows = [datamodule.row_at(at * config.trainer.batch_rows) for at in (step, divergence.step)]
    lowered = dataclasses.replace(config, optim=optim)
    log.warning(
        "%s: going back to %s and on with optim.optimizer.learning_rate=%g instead of %g%s",
        divergence.reason,
        divergence.checkpoint,
        learning_rate,
        optimizer.learning_rate,
        f", without rows {rows[0]} to {rows[1] - 1}" if response.skip_rows else "",
    )
    if _is_rank_zero():
        record = {
            "at": datetime.now().isoformat(timespec="seconds"),
            "reason": divergence.reason,
            "from_step": divergence.step,
            "to_step": step,
            "learning_rate": [optimizer.learning_rate, learning_rate],
            "skipped_rows": rows if response.skip_rows else None,
        }
        rollback.roll_back(folder, dump(lowered), record)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # every rank reads what rank 0 has written
    return lowered


def _record(config: RunConfig, folder: RunFolder, datamodule: RowDataModule) -> None:
    if _is_rank_zero():
        folder.write_config(dump(config))
        if not folder.tokenizer.is_dir():  # of a run that was launched, and begins now
            datamodule.tokenizer.save(folder.tokenizer)
        folder.write_provenance(datetime.now(), datamodule.fingerprint)


def new_folder(config: RunConfig, tokenizer: Tokenizer) -> RunFolder:
    """Made by rank 0; the processes it starts find its name in the environment, those of torchrun in their store."""
    is_told = torch.distributed.is_torchelastic_launched()
    is_child = not _is_rank_zero() and _RUN_DIR in os.environ
    if config.run_dir is None and processes.started_outside() > 1 and not (is_told or is_child):
        raise UserError("several processes were started at once: give them a common folder, run_dir=runs/NAME")
    if _is_rank_zero():
        folder = RunFolder.create(config.run_dir, config.name, datetime.now())
        tokenizer.save(folder.tokenizer)
        os.environ[_RUN_DIR] = str(folder.path)
        if is_told:
            _torchrun_store().set(_RUN_DIR, str(folder.path))
        return folder
    if config.run_dir is not None:
        return RunFolder(Path(config.run_dir))
    return RunFolder(Path(_torchrun_store().get(_RUN_DIR).decode() if is_told else os.environ[_RUN_DIR]))


@cache
def _torchrun_store() -> torch.distributed.Store:
    """What the processes of torchrun share before they train; kept, for rank 0 may be the one that serves it."""
    store, _, _ = next(iter(torch.distributed.rendezvous("env://")))
    return store


def open_run(command: str, path: Path, overrides: Sequence[str]) -> tuple[Any, RunFolder, Path | None]:
    """A run to go on with: its config with the overrides, its folder, its newest checkpoint (None before the first).

    Raises UserError for what would make it another run, and for a run that is finished. It only looks: a process may be
    training there.
    """
    folder = RunFolder.open(path)
    rollback.complete_rollback(folder)
    config = load_file(command, folder.config, overrides)
    checkpoint = latest_checkpoint(folder.checkpoints)
    if any(override.startswith("run_dir=") for override in overrides):
        raise UserError(f"run_dir cannot be given with --resume: the run goes on in {path}")
    if checkpoint is not None:
        _check_same_run(config, folder, checkpoint)
    return config, folder, checkpoint


def _check_same_run(config: RunConfig, folder: RunFolder, checkpoint: Path) -> None:
    """Raises UserError for a damaged checkpoint, one of another model or run, and a run that is finished."""
    parts = (processes.rank(), max(1, processes.started_outside()))
    open_checkpoint(checkpoint, *parts)
    content = read_checkpoint(checkpoint, *parts)
    try:
        saved, step = content["hyper_parameters"]["config"], int(content["global_step"])
        _compare(config, saved, checkpoint)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{checkpoint}: not a checkpoint of a training run of lit-illada ({error!r})") from error
    max_steps = config.trainer.max_steps
    # a run killed after its last step and before its last figures has these to come
    is_reported = folder.read_summary().get("end", {}).get("step") == step
    if step > max_steps or (step == max_steps and is_reported):
        raise UserError(
            f"{folder.path} is finished at step {step}: to go on, raise trainer.max_steps above it (now {max_steps})"
        )


def _compare(config: RunConfig, saved: Mapping[str, Any], checkpoint: Path) -> None:
    """Raises UserError where the config is of another run than the checkpoint's."""
    asked = to_tree(config)
    free = {"attention", "max_position_embeddings", "initializer_range", "vocab_size"}
    different = [key for key in asked["model"] if key not in free and saved["model"].get(key) != asked["model"][key]]
    if different:
        listed = ", ".join(f"{key}: {saved['model'].get(key)} there, {asked['model'][key]} asked" for key in different)
        raise UserError(f"{checkpoint} is a checkpoint of another model ({listed})")
    for node, key in (("trainer", "batch_rows"), ("trainer", "ema_decay")):
        if saved[node][key] != asked[node][key]:
            raise UserError(
                f"{node}.{key} is {saved[node][key]} in the run and {asked[node][key]} asked: that would be another "
                f"run; begin it with init_from={checkpoint}"
            )
    optimizers = [tree["optim"]["optimizer"]["name"] for tree in (saved, asked)]
    if optimizers[0] != optimizers[1]:
        raise UserError(f"the run's optimizer is {optimizers[0]}; {optimizers[1]} cannot take over its moments")


def _append_summary(
    folder: RunFolder, key: str, trainer: pl.Trainer, module: PretrainModule, cost: dict[str, float]
) -> None:
    """The figures of this step, and what the run has cost; those of an earlier validation are left out."""
    if not trainer.is_global_zero:
        return
    is_validated = module.validated_at == trainer.global_step
    metrics = {name: value for name, value in trainer.callback_metrics.items() if is_validated or "val" not in name}
    figures = folder.read_summary()
    figures[key] = {name: float(value) for name, value in sorted(metrics.items())}
    figures[key] |= {f"perf/{name}": value for name, value in cost.items()}
    figures[key]["step"] = trainer.global_step
    folder.write_summary(figures)


def _report(
    folder: RunFolder, trainer: pl.Trainer, config: RunConfig, elapsed_s: float, is_finished: bool, console: Console
) -> None:
    figures = folder.read_summary()
    start, end = figures.get("start", {}), figures["end"]
    table = Table(title=f"{folder.path}, step {trainer.global_step}, {elapsed_s:.0f} s", title_justify="left")
    for heading in ("held-out text", "at the start", "now"):
        table.add_column(heading, justify="left" if heading == "held-out text" else "right")
    rows = {
        "bound, nats a token": "val/nll_bound",
        "  its standard error": "val/nll_bound_stderr",
        "bits a byte": "val/bits_per_byte",
        "  of training frequencies": "val/unigram_cross_entropy",
    }
    for label, name in rows.items():
        table.add_row(label, *(f"{values[name]:.4f}" if name in values else "–" for values in (start, end)))
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
    if not is_finished:
        told["stopped"] = f"go on with: lit-illada {command} --resume {folder.path}"
    for what, text in told.items():
        console.print(f"{what:<12} {text}", highlight=False, soft_wrap=True)


def _interval(values: dict[str, float], name: str) -> str:
    if name not in values:
        return "–"
    return f"{values[name]:.1%} ({values[f'{name}_low']:.0%}–{values[f'{name}_high']:.0%})"


def _is_rank_zero() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0

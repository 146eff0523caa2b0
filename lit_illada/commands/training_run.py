"""Runs a training to its end: the loop that `pretrain`, `sft` and `align` share.

A run may stop early and save (signals, time limit), roll back to an earlier checkpoint (divergence), or fail with one
line (memory). `resume` holds what continues a run, `run_summary` what it reports.
"""

import gc
import logging
import os
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.distributed.tensor import DTensor

from lit_illada import build
from lit_illada.alignment.datamodule import AlignDataModule
from lit_illada.checkpoints.open import Checkpoint
from lit_illada.commands.resume import RecordContinuation, RunConfigs, RunDataModule, roll_back, write_run_files
from lit_illada.commands.run_summary import append_summary, print_summary
from lit_illada.config import AlignConfig, ObjectiveRunConfig, PretrainConfig, RunConfig, SFTConfig
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.model.kernel_choice import LONGEST_MATMUL_ROW, choose_kernel, choose_masked_kernel
from lit_illada.run_folder import RunFolder
from lit_illada.runtime import ranks
from lit_illada.runtime.console import Console
from lit_illada.schema import to_tree
from lit_illada.training.callbacks.divergence import Diverged
from lit_illada.training.callbacks.stopping import GracefulStop
from lit_illada.training.callbacks.tensorboard import begin_board
from lit_illada.training.checkpointing.files import remove_partials
from lit_illada.training.config.trainer import Precision
from lit_illada.training.distributed.rank_watch import RankWatch
from lit_illada.training.loggers import begin_records, end_records, is_rank_zero, require_loggers
from lit_illada.training.optim import check_optimizer
from lit_illada.training.record import record_files, truncate_records
from lit_illada.training.run_module import RunModule

log = logging.getLogger(__name__)

_RUN_DIR = "LIT_ILLADA_RUN_DIR"


def check_hardware(config: RunConfig, row_length: int) -> None:
    """Raise UserError if the run needs a device, process, attention kernel or package that is missing here."""
    started = ranks.started_outside()
    expected = config.trainer.world_size
    if started > 1 and started != expected:
        raise UserError(
            f"{started} processes were started, but trainer.devices × trainer.num_nodes is {expected}: set devices to "
            "the processes per node and num_nodes to the number of nodes"
        )
    check_optimizer(config.optim.optimizer)
    require_loggers(config.logger)
    accelerator, precision = config.trainer.hardware()
    wanted, device, dtype = config.model.attention, accelerator.device.type, precision.dtype
    if config.model.block_length is not None:  # rows [noisy | clean]
        choose_masked_kernel(wanted, device, dtype, 2 * row_length <= LONGEST_MATMUL_ROW, True)
    else:
        choose_kernel(wanted, device, dtype, row_length <= LONGEST_MATMUL_ROW, config.model.head_dim)
    if isinstance(config, ObjectiveRunConfig) and config.has_annealing:
        choose_masked_kernel(wanted, device, dtype, row_length <= LONGEST_MATMUL_ROW, False)


def train(
    config: RunConfigs,
    folder: RunFolder | None,
    datamodule: RunDataModule,
    start: Path | Checkpoint | None,
    console: Console,
) -> None:
    """Train up to the config's last step and print a summary.

    folder: of a run that resumes; None: a new one is created. start: path of the run's checkpoint to resume from, or an
    opened checkpoint with initial weights; None: random weights. After a divergence with rollback, training resumes
    from an earlier checkpoint. Raises SystemExit with 128 + the signal's number where a signal stopped the run early,
    and UserError where memory does not suffice.
    """
    if folder is None:
        folder = _new_folder(config, datamodule.tokenizer)
    config = _with_precision(replace(config, run_dir=str(folder.path)))
    stop = GracefulStop()
    with _exclusive(folder), RankWatch(folder.ranks, config.trainer.timeout_s) as watch:
        is_finished = None
        with stop.handle_signals():
            while is_finished is None:
                try:
                    is_finished = _fit(config, folder, datamodule, start, console, watch, stop)
                except Diverged as divergence:
                    config = roll_back(config, folder, datamodule, divergence)
                    start = divergence.checkpoint
                except (MemoryError, RuntimeError) as error:
                    if _is_out_of_memory(error):
                        raise UserError(_out_of_memory(config, error)) from error
                    raise
                if is_finished is None:
                    _collect_garbage()  # not in the handler: the traceback still refers to the ended fit
        if not is_finished and stop.signal is not None:
            if stop.signal is signal.SIGUSR1:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise SystemExit(128 + stop.signal)


def _new_folder(config: RunConfig, tokenizer: Tokenizer) -> RunFolder:
    """Create the folder of a new run on rank 0; the other ranks get its name.

    Processes that rank 0 starts read the name from the environment, those of torchrun from torchrun's store.
    """
    has_store = torch.distributed.is_torchelastic_launched()
    is_child = not is_rank_zero() and _RUN_DIR in os.environ
    if config.run_dir is None and ranks.started_outside() > 1 and not (has_store or is_child):
        raise UserError("several processes were started at once: give them a common folder, run_dir=runs/NAME")
    if is_rank_zero():
        folder = RunFolder.create(config.run_dir, config.name, datetime.now())
        tokenizer.save(folder.tokenizer)
        os.environ[_RUN_DIR] = str(folder.path)
        if has_store:
            _torchrun_store().set(_RUN_DIR, str(folder.path))
        return folder
    if config.run_dir is not None:
        return RunFolder(Path(config.run_dir))
    return RunFolder(Path(_torchrun_store().get(_RUN_DIR).decode() if has_store else os.environ[_RUN_DIR]))


@cache  # rank 0 may serve the store, so it must outlive this call
def _torchrun_store() -> torch.distributed.Store:
    """The key-value store that the processes of torchrun share before training."""
    store, _, _ = next(iter(torch.distributed.rendezvous("env://")))
    return store


def _with_precision(config: RunConfigs) -> RunConfigs:
    """Replace trainer.precision=auto by this machine's choice, so that the run's record, and so a resume, has it."""
    trainer = config.trainer
    if trainer.precision is not Precision.auto:
        return config
    accelerator, precision = trainer.hardware()
    log.info("trainer.precision=auto is %s here, the faster one on this %s", precision, accelerator)
    return replace(config, trainer=replace(trainer, precision=precision))


@contextmanager
def _exclusive(folder: RunFolder) -> Iterator[None]:
    """Lock the folder on rank 0, for all ranks, and remove partial checkpoints of killed processes."""
    if not is_rank_zero():
        yield
        return
    with folder.held():
        remove_partials(folder.checkpoints)
        yield


def _fit(
    config: RunConfigs,
    folder: RunFolder,
    datamodule: RunDataModule,
    start: Path | Checkpoint | None,
    console: Console,
    watch: RankWatch,
    stop: GracefulStop,
) -> bool:
    """Call Lightning's fit once. Returns whether the run is finished, or false where it stopped early."""
    started_at = time.perf_counter()
    record = record_files(folder.path) if is_rank_zero() else []
    checkpoint = start if isinstance(start, Path) else None
    if checkpoint is None:
        if folder.provenance.exists():  # a process was killed before the first checkpoint
            truncate_records(record, {}, step=-1)
        write_run_files(config, folder, datamodule)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    datamodule.skipped_rows = [tuple(rows) for each in folder.read_rollbacks() if (rows := each["skipped_rows"])]
    initial = start.tensors if isinstance(start, Checkpoint) else {}
    weights = initial if checkpoint is None else None  # Lightning loads those of a checkpoint of this run
    module: RunModule
    if isinstance(config, AlignConfig):
        assert isinstance(datamodule, AlignDataModule)
        module = build.build_align_module(config, datamodule, weights)
    else:
        module = build.build_module(config, datamodule.tokenizer, datamodule.unigram_cross_entropy(), weights)
    trainer, limits, throughput = build.build_trainer(config, folder, module, datamodule, console, stop)
    trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    continuation = RecordContinuation(config, folder, datamodule, record)
    if checkpoint is None:
        if trainer.is_global_zero:
            _begin_curves(config, folder, trainer, module)
        trainer.validate(module, datamodule=datamodule, verbose=False)
        append_summary(folder, "start", trainer, module, {})
    else:
        trainer.callbacks.append(continuation)  # type: ignore[attr-defined]
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    except Diverged:
        _release(trainer, module)
        raise
    if checkpoint is not None:
        continuation.begin(trainer)  # Lightning calls no hook where no step is left
    is_finished = trainer.global_step >= trainer.max_steps or any(limit.is_reached for limit in limits)
    if is_finished and module.validated_at != trainer.global_step:
        trainer.limit_val_batches = 1.0  # a signal in the last step may have switched validation off
        trainer.validate(module, datamodule=datamodule, verbose=False)
    append_summary(folder, "end", trainer, module, {**throughput.cost(), **module.cost()})
    if trainer.is_global_zero:
        print_summary(folder, trainer, config, time.perf_counter() - started_at, is_finished, console)
    end_records(trainer.loggers)
    # torchrun treats an early exit as a failure, so ranks leave together
    trainer.strategy.barrier()
    return is_finished


def _begin_curves(config: RunConfigs, folder: RunFolder, trainer: pl.Trainer, module: RunModule) -> None:
    """Log hyperparameters, labels and the unigram baseline of a new run."""
    tree = to_tree(config)
    begin_records(trainer.loggers, tree)
    begin_board(
        trainer.logger,  # type: ignore[arg-type]
        tree,
        folder.read_labels(),
        unigram_cross_entropy=module.unigram_cross_entropy,
        num_steps=config.trainer.max_steps,
        num_tokens=config.trainer.max_steps * config.trainer.batch_rows * _row_length(config),
    )


def _row_length(config: RunConfigs) -> int:
    match config:
        case PretrainConfig():
            return config.data.row_length
        case SFTConfig():
            return config.sft_data.row_length
    return config.generation.max_new_tokens


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's CPU allocator raises a plain RuntimeError
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _out_of_memory(config: RunConfigs, error: BaseException) -> str:
    device = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "this machine"
    if isinstance(config, AlignConfig):
        smaller = "rollout_rows and trainer.micro_batch_rows; the results stay the same"
        return f"out of memory on {device} ({' '.join(str(error).split())[:160]}): lower {smaller}"
    command = f"sft {shlex.quote(str(config.init_from))}" if isinstance(config, SFTConfig) else "pretrain"
    detail = " ".join(str(error).split())[:160]
    return (
        f"out of memory on {device} ({detail}): lower trainer.micro_batch_rows (now {config.trainer.micro_batch_rows}; "
        "trainer.batch_rows and the results stay the same) or choose a smaller model; "
        f"`lit-illada estimate {command}` with the same overrides shows what a step needs"
    )


def _release(trainer: pl.Trainer, module: RunModule) -> None:
    """Free weights and optimizer state while other objects still refer to them: the next fit needs the memory."""
    for optimizer in trainer.optimizers:
        optimizer.state.clear()
        optimizer.zero_grad(set_to_none=True)
    for parameter in module.parameters():
        if isinstance(parameter, DTensor):  # fully_shard holds further views of the storage
            parameter.to_local().untyped_storage().resize_(0)
    if not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        module.to_empty(device=torch.device("meta"))
    # the data module and the callbacks outlive the fit; Lightning gave the callbacks bound methods of the module
    trainer.datamodule.trainer = None  # type: ignore[attr-defined]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for name in ("log", "log_dict"):
            vars(callback).pop(name, None)


def _collect_garbage() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()

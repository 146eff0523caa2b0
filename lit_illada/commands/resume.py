"""Resumes a run from a checkpoint: `--resume` after it ended, or a rollback after its loss diverged."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from lit_illada.alignment.datamodule import AlignDataModule
from lit_illada.checkpoints.open import Checkpoint, open_checkpoint
from lit_illada.config import AlignConfig, PretrainConfig, RunConfig, SFTConfig, load_file
from lit_illada.data.row_datamodule import RowDataModule
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.run_folder import RunFolder
from lit_illada.runtime import plugins, ranks
from lit_illada.schema import dump, to_tree
from lit_illada.training.callbacks.divergence import Diverged
from lit_illada.training.checkpointing import rollback
from lit_illada.training.checkpointing.files import latest_checkpoint, step_of
from lit_illada.training.checkpointing.saving import Checkpoints
from lit_illada.training.loggers import continue_records, is_rank_zero
from lit_illada.training.record import truncate_records

log = logging.getLogger(__name__)
RunConfigs = PretrainConfig | SFTConfig | AlignConfig
RunDataModule = RowDataModule | AlignDataModule
# model settings that may change between the checkpoint and the resumed run: they change no weight
_FREE_MODEL_KEYS = {"attention", "max_position_embeddings", "initializer_range", "vocab_size"}


def open_run(command: str, path: Path, overrides: Sequence[str]) -> tuple[Any, RunFolder, Path | None]:
    """Read a run to resume: its config with the overrides, its folder, its newest checkpoint (None before the first).

    Apart from completing a rollback it writes nothing, since another process may be training in the folder. Raises
    UserError for overrides that would make it another run, and for a run that is finished.
    """
    folder = RunFolder.open(path)
    rollback.complete_rollback(folder)
    config = load_file(command, folder.config, overrides)
    checkpoint = latest_checkpoint(folder.checkpoints)
    if any(override.startswith("run_dir=") for override in overrides):
        raise UserError(f"run_dir cannot be given with --resume: the run stays in {path}")
    if checkpoint is not None:
        _check_same_run(config, folder, checkpoint)
    return config, folder, checkpoint


def open_tuning(
    command: str,
    base: Path | None,
    overrides: Sequence[str],
    resume: Path | None,
    load: Callable[[Path, Sequence[str]], tuple[Any, Checkpoint]],
) -> tuple[Any, RunFolder | None, Path | Checkpoint, Tokenizer]:
    """Start a run from the checkpoint `base`, by `load`, or resume one.

    Returns its config, its folder (None: a new run), the checkpoint to continue from, and its tokenizer. Raises
    UserError as `load` and `open_run` do, and where neither checkpoint nor run is given.
    """
    if resume is not None:
        config, folder, start = open_run(command, resume, overrides)
        tokenizer = Tokenizer.load(folder.tokenizer)
        return config, folder, start or open_checkpoint(Path(config.init_from)), tokenizer
    if base is None:
        verb = {"sft": "fine-tune"}.get(command, command)
        raise UserError(f"nothing to {verb}: give a checkpoint, or --resume RUN")
    config, opened = load(base, overrides)
    return config, None, opened, opened.tokenizer


def _check_same_run(config: RunConfig, folder: RunFolder, checkpoint: Path) -> None:
    """Raise UserError for a damaged checkpoint, one of another model or run, and a run that is finished."""
    state = open_checkpoint(checkpoint, ranks.rank(), max(1, ranks.started_outside())).state
    assert state is not None, f"{checkpoint}: a run's checkpoints have a state"
    try:
        saved, step = state["hyper_parameters"]["config"], int(state["global_step"])
        # an alignment's batch follows from other keys
        _compare(config.resolve() if isinstance(config, AlignConfig) else config, saved, checkpoint)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{checkpoint}: not a checkpoint of a training run of lit-illada ({error!r})") from error
    max_steps = config.trainer.max_steps
    # a run killed between its last step and its last validation still has to report
    is_reported = folder.read_summary().get("end", {}).get("step") == step
    if step > max_steps or (step == max_steps and is_reported):
        raise UserError(
            f"{folder.path} is finished at step {step}: to resume it, raise trainer.max_steps above that (now "
            f"{max_steps})"
        )


def _compare(config: RunConfig, saved: Mapping[str, Any], checkpoint: Path) -> None:
    """Raise UserError where the config belongs to another run than the checkpoint."""
    new = to_tree(config)
    compared = [key for key in new["model"] if key not in _FREE_MODEL_KEYS]
    different = [key for key in compared if saved["model"].get(key) != new["model"][key]]
    if different:
        listed = ", ".join(f"{key}: {saved['model'].get(key)} there, {new['model'][key]} here" for key in different)
        raise UserError(f"{checkpoint} is a checkpoint of another model ({listed})")
    for node, key in (("trainer", "batch_rows"), ("trainer", "ema_decay")):
        if saved[node][key] != new[node][key]:
            raise UserError(
                f"{node}.{key} was {saved[node][key]} in the run and would be {new[node][key]}: start a new run "
                f"instead, with init_from={checkpoint}"
            )
    optimizers = [tree["optim"]["optimizer"]["name"] for tree in (saved, new)]
    if optimizers[0] != optimizers[1]:
        raise UserError(f"the run's optimizer is {optimizers[0]}; {optimizers[1]} cannot load its state")


def write_run_files(config: RunConfig, folder: RunFolder, datamodule: RunDataModule) -> None:
    """Write config, tokenizer and provenance of a run that starts or resumes; rank 0 only."""
    if is_rank_zero():
        folder.write_config(dump(config))
        if not folder.tokenizer.is_dir():  # a run created by `launch` has none yet
            datamodule.tokenizer.save(folder.tokenizer)
        folder.write_provenance(datetime.now(), datamodule.fingerprint, plugins.files_of(config))


class RecordContinuation(Callback):
    """Truncates the run's curves and samples to the checkpoint and records the resume in the folder.

    It acts only once Lightning has loaded the checkpoint, so that a refused resume leaves the run unchanged.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, datamodule: RunDataModule, record: Sequence[Path]) -> None:
        """record: the files of the run's record before this process appends to them."""
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
        write_run_files(self._config, self._folder, self._datamodule)


def roll_back(config: RunConfigs, folder: RunFolder, datamodule: RunDataModule, divergence: Diverged) -> RunConfigs:
    """Remove the diverged checkpoints and return the config to resume with: a lower learning rate."""
    step, response = step_of(divergence.checkpoint), divergence.response
    optimizer = config.optim.optimizer
    learning_rate = optimizer.learning_rate * response.learning_rate_factor
    optim = dataclasses.replace(config.optim, optimizer=dataclasses.replace(optimizer, learning_rate=learning_rate))
    rows = [datamodule.row_at(at * config.trainer.batch_rows) for at in (step, divergence.step)]
    lowered = dataclasses.replace(config, optim=optim)
    log.warning(
        "%s: resuming from %s with optim.optimizer.learning_rate=%g instead of %g%s",
        divergence.reason,
        divergence.checkpoint,
        learning_rate,
        optimizer.learning_rate,
        f", without rows {rows[0]} to {rows[1] - 1}" if response.skip_rows else "",
    )
    if is_rank_zero():
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
        torch.distributed.barrier()  # every rank reads what rank 0 wrote
    return lowered

"""When a run's state is written, and how it is found again: atomically, newest first."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_illada.errors import UserError

_PREFIX, _SUFFIX = "step=", ".ckpt"
PARTIAL_SUFFIX = ".partial"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a kill or a full disk leaves every earlier checkpoint whole.

    Lightning's own goes through the system's temporary folder, which may lie on another file system: a copy, no
    rename.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}{PARTIAL_SUFFIX}")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            # torch's zip writer reports a full disk as a RuntimeError of its own
            raise UserError(f"{target}: the checkpoint could not be written ({_cause(error)})") from error


class Checkpoints(ModelCheckpoint):
    """Saves every `every_steps` optimizer steps and at the last one; keeps the newest `keep`.

    A step that is also validated is saved after the validation, so that a resume never skips one.
    """

    def __init__(self, folder: Path, every_steps: int, keep: int, val_every_steps: int) -> None:
        super().__init__(
            dirpath=folder,
            filename="{step:08d}",
            monitor="step",
            mode="max",
            save_top_k=keep,
            every_n_train_steps=every_steps,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._every_steps = every_steps
        self._val_every_steps = val_every_steps

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        # between two steps only: what a step has accumulated so far is in no checkpoint
        if trainer.global_step != self._step_before and not self.is_validated(trainer.global_step):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._save_if_due(trainer)

    def is_validated(self, step: int) -> bool:
        """Whether a validation follows this step."""
        return step % self._val_every_steps == 0

    def save_now(self, trainer: Trainer) -> None:
        """Save at this step, due or not."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_if_due(self, trainer: Trainer) -> None:
        is_last = trainer.global_step >= trainer.max_steps
        if trainer.global_step > 0 and (is_last or trainer.global_step % self._every_steps == 0):
            self.save_now(trainer)


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in a folder."""
    return max(folder.glob(f"*{_SUFFIX}"), key=lambda path: path.name, default=None)


def newest_until(folder: Path, step: int) -> Path | None:
    """The newest checkpoint of a folder that was taken at this step or before."""
    return max((path for path in _checkpoints(folder) if step_of(path) <= step), key=step_of, default=None)


def remove_after(folder: Path, step: int) -> list[Path]:
    """Remove every checkpoint taken after this step, the newest first: whatever a kill leaves is one unbroken run."""
    later = sorted((path for path in _checkpoints(folder) if step_of(path) > step), key=step_of, reverse=True)
    for path in later:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return later


def step_of(path: Path) -> int:
    """The optimizer steps that a checkpoint's name tells."""
    return int(path.stem.removeprefix(_PREFIX))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU, tensors and plain values only (nothing in the file is executed).

    Tensors are mapped from the file, so that those nobody uses (the optimizer's) cost no memory.
    Raises UserError for a missing or damaged file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UserError(f"{path}: not a readable checkpoint ({_cause(error)})") from error


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{_PREFIX}*{_SUFFIX}") if path.stem.removeprefix(_PREFIX).isdigit()]


def _cause(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]

"""What is a checkpoint on disk, how is it found, read and removed?

A file where one process holds everything, a folder where several share it: `state.pt` with all but the shared tensors,
and each process's parts of those. Both carry the same content, under the same names, and appear whole or not at all.
"""

import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_illada.errors import UserError
from lit_illada.runtime.checksums import DamagedFileError, check_files, check_zip
from lit_illada.training.checkpointing.sharded import StoredTensor, open_parts

PARTIAL_SUFFIX = ".partial"
STATE_FILE = "state.pt"
BEST = "best"  # a link to the best checkpoint that is kept
ELSEWHERE = "<in the parts>"  # what stands in state.pt for a tensor that lies in the parts
HAS_CHECKSUM = "has_checksum"  # key of a saved state whose file ends with its checksum; older ones have none
_SUFFIX = ".ckpt"


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step={step:08d}{_SUFFIX}"


def parts_file(process: int, num_processes: int) -> str:
    """The name of a process's parts."""
    return f"parts-{process:05d}-of-{num_processes:05d}.safetensors"


def checksums_file(process: int, num_processes: int) -> str:
    """The name of the checksums of a process's parts."""
    return f"checksums-{process:05d}-of-{num_processes:05d}.json"


def checkpoints_by_step(folder: Path) -> dict[int, Path]:
    """The whole checkpoints of a folder, ascending."""
    found = {
        int(match[1]): path
        for path in folder.glob(f"*{_SUFFIX}")
        if (match := re.fullmatch(rf"step=(\d+){re.escape(_SUFFIX)}", path.name))
    }
    return dict(sorted(found.items()))


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in a folder."""
    return next(reversed(checkpoints_by_step(folder).values()), None)


def newest_until(folder: Path, step: int) -> Path | None:
    """The newest checkpoint of a folder that was taken at this step or before."""
    return next((path for at, path in reversed(checkpoints_by_step(folder).items()) if at <= step), None)


def remove_after(folder: Path, step: int) -> list[Path]:
    """Remove every checkpoint taken after this step, the newest first: whatever a kill leaves is one unbroken run.

    `best` goes with the one it led to, until a later save finds the best of what is left.
    """
    later = [path for at, path in reversed(checkpoints_by_step(folder).items()) if at > step]
    for path in later:
        remove_checkpoint(path)
    if not (folder / BEST).exists():
        link_best(folder, None)
    return later


def step_of(path: Path) -> int:
    """The optimizer steps that a checkpoint's name tells."""
    return int(path.stem.removeprefix("step="))


def is_checkpoint(path: Path) -> bool:
    """Whether it is one checkpoint, of either kind, rather than a folder of other things."""
    return path.is_file() or (path / STATE_FILE).is_file()


def read_checkpoint(path: Path, process: int = 0, num_processes: int = 1) -> dict[str, Any]:
    """A checkpoint's content on the CPU, tensors and plain values only (nothing in the files is executed).

    Tensors are mapped from the file, or are StoredTensors, so that those nobody uses (the optimizer's) cost no memory.
    process, num_processes: where several processes read a sharded checkpoint, each compares its part of the files with
    their checksums. Raises UserError for a missing or damaged checkpoint, naming the newest whole one before it.
    """
    try:
        return _read(path, process, num_processes)
    except DamagedFileError as error:
        raise DamagedFileError(f"{error}{_earlier_whole(path)}") from error


def _read(path: Path, process: int, num_processes: int) -> dict[str, Any]:
    if not path.is_dir():
        return _load(path)
    if not (path / STATE_FILE).is_file():
        raise UserError(f"{path}: no such checkpoint (no {STATE_FILE} in it)")
    state = _load(path / STATE_FILE)
    number = state.get("num_processes")
    if not isinstance(number, int) or number < 1 or "content" not in state:
        raise DamagedFileError(f"{path / STATE_FILE}: not the state of a sharded checkpoint")
    files = [path / parts_file(each, number) for each in range(number)]
    if state[HAS_CHECKSUM]:
        for each in range(process, number, num_processes):
            _check_parts(files[each], path / checksums_file(each, number))
    parts = open_parts(files)

    def put_back(name: str, leaf: Any) -> Any:
        if not (isinstance(leaf, str) and leaf == ELSEWHERE):
            return leaf
        if name not in parts:
            raise DamagedFileError(f"{path}: damaged, none of its files holds {name}")
        return parts[name]

    return map_leaves(state["content"], put_back)


def _check_parts(file: Path, checksums: Path) -> None:
    if not checksums.is_file():
        raise DamagedFileError(f"{checksums}: missing, the checkpoint cannot be checked")
    if file.name not in check_files(checksums):
        raise DamagedFileError(f"{checksums}: damaged, it does not list {file.name}")


def _earlier_whole(path: Path) -> str:
    """The end of a message about a damaged checkpoint: which earlier one can take its place."""
    there = checkpoints_by_step(path.parent)
    if path not in there.values():
        return ""
    for step, earlier in reversed(there.items()):
        if step < step_of(path):
            with suppress(UserError):
                _read(earlier, 0, 1)
                return f"; the newest whole checkpoint before it is {earlier}: remove {path} and resume from that"
    return "; no whole checkpoint before it is left"


class Weights(Mapping[str, Tensor]):
    """A checkpoint's weights, each read when it is asked for. shapes: by name, known without reading."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._stored: Mapping[str, Tensor | StoredTensor] = content["state_dict"]
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._stored.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name][...]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def map_leaves(content: Any, change: Callable[[str, Any], Any], name: str = "") -> Any:
    """The content anew, each leaf as `change` makes it of its path in the content and its value."""
    if isinstance(content, Mapping):
        return {key: map_leaves(value, change, f"{name}/{key}") for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(map_leaves(value, change, f"{name}/{index}") for index, value in enumerate(content))
    return change(name, content)


def partial_of(path: Path) -> Path:
    """Where a checkpoint is written before it is whole."""
    return path.with_name(f".{path.name}{PARTIAL_SUFFIX}")


def publish_partial(path: Path) -> None:
    """The written partial becomes the checkpoint, at once and for good."""
    if path.is_dir():
        _remove_folder(path)
    if partial_of(path).is_dir():
        sync_folder(partial_of(path))
    partial_of(path).replace(path)
    sync_folder(path.parent)


def remove_checkpoint(path: Path) -> None:
    """At once: a kill in the middle leaves a partial, never half a checkpoint."""
    if path.is_dir():
        _remove_folder(path)
    else:
        path.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """What kills have left; of a run that goes on, its own writes."""
    for partial in folder.glob(f".*{PARTIAL_SUFFIX}"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def link_best(folder: Path, target: Path | None) -> None:
    """`best` leads to this checkpoint from now on; None: to none."""
    link = folder / BEST
    if target is None:
        link.unlink(missing_ok=True)
        return
    partial = partial_of(link)
    partial.unlink(missing_ok=True)
    partial.symlink_to(target.name, target_is_directory=target.is_dir())
    partial.replace(link)


def sync_folder(folder: Path) -> None:
    """Names in it outlast a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cause(error: BaseException) -> str:
    """What went wrong, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _load(path: Path) -> dict[str, Any]:
    """A file that `torch.save` wrote, compared with its checksum, if it has one: HAS_CHECKSUM says."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    has_checksum = check_zip(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to run the code
        raise DamagedFileError(
            f"{path}: not a readable checkpoint (damaged, or it holds objects that could run code; only tensors and "
            "plain values are read)"
        ) from error
    except Exception as error:  # archives fail in many ways
        raise DamagedFileError(f"{path}: not a readable checkpoint ({cause(error)})") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path}: not a checkpoint of lit-illada, it holds a {type(content).__name__}")
    if content.get(HAS_CHECKSUM) and not has_checksum:
        raise DamagedFileError(f"{path}: damaged, its checksum is missing")
    return {**content, HAS_CHECKSUM: has_checksum}


def _remove_folder(path: Path) -> None:
    going = partial_of(path.with_name(f"{path.name}.removed"))
    shutil.rmtree(going, ignore_errors=True)
    with suppress(FileNotFoundError):  # another process has been faster
        path.replace(going)
    shutil.rmtree(going, ignore_errors=True)

"""Reads checkpoints, whole or sharded, without executing anything they contain, and verifies their checksums."""

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_illada.errors import UserError
from lit_illada.runtime.checksums import DamagedFileError, check_files, check_zip
from lit_illada.runtime.files import MissingFileError
from lit_illada.training.checkpointing.files import STATE_FILE, checkpoints_by_step, checksums_file, parts_file, step_of
from lit_illada.training.checkpointing.sharded import StoredTensor, open_parts

ELSEWHERE = "<in the parts>"  # placeholder in state.pt for a tensor that is stored in the parts
HAS_CHECKSUM = "has_checksum"  # key of a state whose file ends with its checksum; older checkpoints have none


def read_checkpoint(path: Path, process: int = 0, num_processes: int = 1) -> dict[str, Any]:
    """Load a checkpoint's content on the CPU: tensors and plain values only.

    Tensors are memory-mapped, or `StoredTensor`s of a sharded checkpoint, so that unused ones (such as the optimizer's)
    cost no memory.

    Args:
        path: a checkpoint file or folder.
        process, num_processes: the index and number of the processes that read a sharded checkpoint together; each
            verifies a part of the files.

    Raises:
        MissingFileError: the checkpoint does not exist.
        DamagedFileError: it is damaged; the message names the newest intact checkpoint before it.
    """
    try:
        return _read(path, process, num_processes)
    except DamagedFileError as error:
        raise DamagedFileError(f"{error}{_earlier_intact(path)}") from error


class Weights(Mapping[str, Tensor]):
    """The weights of a checkpoint by name, each read on access."""

    shapes: dict[str, tuple[int, ...]]
    """Shapes by name, available without reading a tensor."""

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
    """Copy nested dicts, lists and tuples, replacing each leaf by `change(path, leaf)`, with paths such as `/a/0`."""
    if isinstance(content, Mapping):
        return {key: map_leaves(value, change, f"{name}/{key}") for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(map_leaves(value, change, f"{name}/{index}") for index, value in enumerate(content))
    return change(name, content)


def one_line(error: BaseException) -> str:
    """An exception's message on one line, at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _read(path: Path, process: int, num_processes: int) -> dict[str, Any]:
    if not path.is_dir():
        return _load(path)
    if not (path / STATE_FILE).is_file():
        raise MissingFileError(f"{path}: no such checkpoint (it contains no {STATE_FILE})")
    state = _load(path / STATE_FILE)
    num_files = state.get("num_processes")
    if not isinstance(num_files, int) or num_files < 1 or "content" not in state:
        raise DamagedFileError(f"{path / STATE_FILE}: not the state of a sharded checkpoint")
    files = [path / parts_file(each, num_files) for each in range(num_files)]
    if state[HAS_CHECKSUM]:
        for each in range(process, num_files, num_processes):
            _check_parts(files[each], path / checksums_file(each, num_files))
    parts = open_parts(files)

    def put_back(name: str, leaf: Any) -> Any:
        if not (isinstance(leaf, str) and leaf == ELSEWHERE):
            return leaf
        if name not in parts:
            raise DamagedFileError(f"{path}: damaged, none of its files contains {name}")
        return parts[name]

    return map_leaves(state["content"], put_back)


def _check_parts(file: Path, checksums: Path) -> None:
    if not checksums.is_file():
        raise DamagedFileError(f"{checksums}: missing, so the checkpoint cannot be verified")
    if file.name not in check_files(checksums):
        raise DamagedFileError(f"{checksums}: damaged, it does not list {file.name}")


def _earlier_intact(path: Path) -> str:
    """The end of a message about a damaged checkpoint: the earlier one to resume from."""
    checkpoints = checkpoints_by_step(path.parent)
    if path not in checkpoints.values():
        return ""
    for step, earlier in reversed(checkpoints.items()):
        if step < step_of(path):
            with suppress(UserError):
                _read(earlier, 0, 1)
                return f"; the newest intact checkpoint before it is {earlier}: remove {path} and resume from that one"
    return "; there is no intact checkpoint before it"


def _load(path: Path) -> dict[str, Any]:
    """Load a file that `torch.save` wrote; its checksum is verified if it has one (HAS_CHECKSUM of the result)."""
    if not path.is_file():
        raise MissingFileError(f"{path}: no such checkpoint")
    has_checksum = check_zip(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        # torch's messages advise to allow code execution, or to save the file again
        raise DamagedFileError(
            f"{path}: not a readable checkpoint (damaged, or it contains objects that could run code; only tensors and "
            "plain values are read)"
        ) from error
    except Exception as error:  # damaged archives raise many types of errors
        raise DamagedFileError(f"{path}: not a readable checkpoint ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path}: not a checkpoint of lit-illada; it contains a {type(content).__name__}")
    if content.get(HAS_CHECKSUM) and not has_checksum:
        raise DamagedFileError(f"{path}: damaged, its checksum is missing")
    return {**content, HAS_CHECKSUM: has_checksum}

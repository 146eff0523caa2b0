"""Writes checkpoints in the background: copies the state to host memory, then writes it in a thread.

Training pauses only for the copy. A checkpoint is written under a partial name; `Checkpoints` publishes it between two
steps, once every process has written its parts.
"""

import errno
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TypeGuard

import torch
import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_illada.errors import UserError
from lit_illada.runtime.checksums import ChecksummedWriter, write_checksums
from lit_illada.training.checkpointing.files import (
    STATE_FILE,
    checksums_file,
    partial_of,
    parts_file,
    publish_partial,
    remove_checkpoint,
    sync_folder,
)
from lit_illada.training.checkpointing.own_parts import own_parts
from lit_illada.training.checkpointing.reading import ELSEWHERE, HAS_CHECKSUM, map_leaves, one_line, read_checkpoint
from lit_illada.training.checkpointing.sharded import Part, write_parts


class CheckpointWriter(CheckpointIO):
    """Writes one checkpoint at a time: every process calls `save_checkpoint`, then `publish` or `discard`.

    is_async: write in the background, from a copy in host memory (page-locked for GPU tensors); false: write before
        training continues, without a copy.
    """

    def __init__(self, *, is_async: bool) -> None:
        self._is_async = is_async
        self._path: Path | None = None
        self._thread: threading.Thread | None = None
        self.is_sharded = False
        self.error: UserError | None = None
        self._is_written = False
        self.write_s = 0.0
        self._own: dict[str, tuple[int, ...]] = {}
        self._own_of: list[str] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        assert self._path is None, f"{self._path} is still being written"
        self.error, self._is_written = None, False
        content, parts = self._split(checkpoint)
        self.is_sharded = parts is not None
        if self._is_async:
            content, parts = _copied(content, parts)
        thread = threading.Thread(target=self._write, args=(Path(path), content, parts), daemon=True)
        thread.start()
        self._path, self._thread = Path(path), thread  # set last: the copy may fail for lack of memory
        if not self._is_async:
            thread.join()

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint. Collective: raises UserError on every rank if any rank finds it damaged."""
        content: dict[str, Any] = {}
        message = None
        try:
            content = read_checkpoint(Path(path), _rank(), _num_processes())
        except UserError as error:
            message = str(error)
        messages = [message]
        if dist.is_initialized():
            messages = [None] * _num_processes()
            dist.all_gather_object(messages, message)
        if first := next((each for each in messages if each is not None), None):
            raise UserError(first)
        return content

    def remove_checkpoint(self, path: Any) -> None:
        remove_checkpoint(Path(path))

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait until this process has written its parts, or failed (`error`)."""
        if self._thread is not None:
            self._thread.join()

    def publish(self) -> None:
        """End a write that succeeded in every process, and make the checkpoint visible."""
        assert self._is_written, f"{self._path} is incomplete"
        path = self._end()
        if _rank() == 0:
            publish_partial(path)

    def discard(self) -> None:
        """End a write that failed in some process, and remove what was written."""
        path = self._end()
        if _rank() == 0:
            remove_checkpoint(partial_of(path))

    def _split(self, checkpoint: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Part] | None]:
        """Split a checkpoint into the content that rank 0 writes and this process's parts of sharded tensors.

        The parts are None if no tensor is sharded.
        """
        shared: dict[str, DTensor] = {}

        def take_out(name: str, leaf: Any) -> Any:
            if not isinstance(leaf, DTensor):
                return leaf
            shared[name] = leaf
            return ELSEWHERE

        content = map_leaves(checkpoint, take_out)
        if not shared:
            return content, None
        # own_parts is collective; the names are the same on all ranks, so all call it in the same save
        if self._own_of != list(shared):
            self._own, self._own_of = own_parts(shared), list(shared)
        return content, {
            name: Part(tuple(shared[name].shape), offset, shared[name].to_local().detach())
            for name, offset in self._own.items()
        }

    def _end(self) -> Path:
        assert self._path is not None
        assert not self.is_busy
        path, self._path, self._thread = self._path, None, None
        return path

    def _write(self, path: Path, content: dict[str, Any], parts: dict[str, Part] | None) -> None:
        started_at = time.perf_counter()
        try:
            if parts is not None:
                _write_folder(partial_of(path), content, parts)
            elif _rank() == 0:
                _write_file(partial_of(path), content)
            self._is_written = True
        except Exception as error:  # of any type: nobody would see an exception that ends a thread
            detail = f"{error.strerror}); free some space and resume" if _is_full(error) else f"{one_line(error)})"
            self.error = UserError(f"{path}: the checkpoint could not be written ({detail}")
            self.error.__cause__ = error
        self.write_s = time.perf_counter() - started_at


def _copied(content: dict[str, Any], parts: dict[str, Part] | None) -> tuple[dict[str, Any], dict[str, Part] | None]:
    """Copy what this process writes to memory that training does not modify."""
    mine = map_leaves(content if _rank() == 0 else {}, lambda _, leaf: _on_host(leaf))
    if parts is not None:
        parts = {name: Part(part.shape, part.offset, _on_host(part.values)) for name, part in parts.items()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return mine, parts


def _on_host(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    # from a GPU, asynchronously into page-locked memory, which torch caches for the next save
    return leaf.detach().to("cpu", non_blocking=True) if leaf.is_cuda else leaf.detach().clone()


def _write_file(partial: Path, content: Mapping[str, Any]) -> None:
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w+b") as file:
        stream = ChecksummedWriter(file)
        try:
            torch.save({**content, HAS_CHECKSUM: True}, stream)  # type: ignore[arg-type]
        except RuntimeError as error:  # torch reports a full disk as a line of its source
            raise stream.error or error from error
        stream.end_zip()
        _sync(file)


def _write_folder(partial: Path, content: Mapping[str, Any], parts: Mapping[str, Part]) -> None:
    partial.mkdir(parents=True, exist_ok=True)
    name = parts_file(_rank(), _num_processes())
    with (partial / name).open("wb") as file:
        stream = ChecksummedWriter(file)
        write_parts(stream, parts)
        digest = (stream.num_bytes, stream.hexdigest())
        _sync(file)
    write_checksums(partial / checksums_file(_rank(), _num_processes()), {name: digest})
    if _rank() == 0:
        _write_file(partial / STATE_FILE, {"num_processes": _num_processes(), "content": content})
    sync_folder(partial)  # by every rank: each machine must make the name of its own file durable


def _is_full(error: Exception) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1

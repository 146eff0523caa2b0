"""Which tensors lie in safetensors files, and how are they read and written without a second copy in memory?

A tensor that is read is mapped from its file, one that is written goes straight from its memory to the disk.
"""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_illada.errors import UserError
from lit_illada.runtime.files import read_json, write_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


class TensorFiles(Mapping[str, Tensor]):
    """Tensors by name; each is mapped from its file when it is asked for.

    shapes, dtypes: by name, known without reading a tensor. metadata: of the first file's header.
    """

    def __init__(self, paths: list[Path]) -> None:
        """Raises UserError for a file that is missing, cut off or holds tensors that are no floating-point numbers."""
        self._files: dict[str, Any] = {}
        self._paths: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.metadata: dict[str, str] = {}
        for path in paths:
            self._add(path)

    @classmethod
    def open(cls, folder: Path) -> "TensorFiles":
        """Those of a folder: its shards, as the index says, or its one file. A pickle is refused unread."""
        index = folder / INDEX_FILE
        if not index.is_file():
            if not (folder / SINGLE_FILE).is_file():
                raise _no_safetensors(folder)
            return cls([folder / SINGLE_FILE])
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{index}: no weight_map that names each tensor's file")
        names = sorted(set(map(str, weight_map.values())))
        if stray := next((name for name in names if not re.fullmatch(r"[\w.-]+\.safetensors", name)), None):
            raise UserError(f"{index}: {stray!r} is not the name of a safetensors file in that folder")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UserError(
                f"{folder}: {len(missing)} of {len(names)} shards are missing, the first is {missing[0]}: download "
                "the checkpoint again"
            )
        files = cls([folder / name for name in names])
        for name, shard in weight_map.items():
            if name not in files or files.path_of(name).name != shard:
                raise UserError(f"{index}: says that {name} is in {shard}, where it is not")
        return files

    def path_of(self, name: str) -> Path:
        return self._paths[name]

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def _add(self, path: Path) -> None:
        try:
            file = safe_open(str(path), "pt")
            names = file.keys()
            self.metadata = self.metadata or file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path}: not a whole safetensors file ({error}); if it was downloaded, download it again"
            ) from error
        for name in names:
            header = file.get_slice(name)
            if header.get_dtype() not in DTYPES:
                raise UserError(
                    f"{path}: {name} holds {header.get_dtype()}, and only {', '.join(DTYPES)} are read, no quantised "
                    "weights"
                )
            if name in self._files:
                raise UserError(f"{path}: {name} is in {self._paths[name].name} too")
            self._files[name], self._paths[name] = file, path
            self.shapes[name], self.dtypes[name] = tuple(header.get_shape()), DTYPES[header.get_dtype()]


def write_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    dtype: torch.dtype | None,
    max_shard_bytes: int,
) -> None:
    """Into one file, or into shards of at most so many bytes with an index. sizes: bytes of each tensor as written.

    dtype: what they are written as; None keeps each one's. Where it changes, one shard at a time is in memory.
    """
    shards = _shards(sizes, max_shard_bytes)
    if len(shards) == 1:
        write_file(folder / SINGLE_FILE, tensors, shards[0], {"format": "pt"}, dtype)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, tensors, names, {"format": "pt"}, dtype)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / INDEX_FILE, index)


def write_file(
    path: Path, tensors: Mapping[str, Tensor], names: list[str], metadata: dict[str, str], dtype: torch.dtype | None
) -> None:
    """One safetensors file of the named tensors."""
    try:
        save_file({name: tensors[name].to(dtype).contiguous() for name in names}, path, metadata)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be written ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """The operating system's words, without what the library puts around them, and what helps."""
    match = re.search(r"os error (\d+)", str(error))
    number = int(match[1]) if match else getattr(error, "errno", None)
    hint = "; free some space and run it again" if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
    return f"{os.strerror(number) if number else ' '.join(str(error).split())}{hint}"


def _shards(sizes: Mapping[str, int], max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _no_safetensors(folder: Path) -> UserError:
    pickles: list[Path] = []
    with suppress(OSError):
        pickles = sorted(path for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return UserError(
            f"{pickles[0]} is a pickle, which could run code when read: only safetensors are read, and {folder} holds "
            f"no {SINGLE_FILE}"
        )
    return UserError(f"{folder}: no weights there (neither {SINGLE_FILE} nor {INDEX_FILE})")

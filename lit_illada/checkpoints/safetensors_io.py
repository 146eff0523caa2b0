"""Reading and writing of safetensors files without a second copy in memory.

Tensors are memory-mapped when read and written directly from their own memory.
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
    """Tensors by name, memory-mapped on access.

    Attributes:
        shapes, dtypes: by name, from the file headers.
        metadata: of the first file's header.
    """

    def __init__(self, paths: list[Path]) -> None:
        """Raises UserError for a file that is missing or truncated, or for tensors that are not floating-point."""
        self._files: dict[str, Any] = {}
        self._paths: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.metadata: dict[str, str] = {}
        for path in paths:
            self._add(path)

    @classmethod
    def open(cls, folder: Path) -> "TensorFiles":
        """Opens the shards that the index of a folder lists, or its single file. Rejects pickles without reading."""
        index = folder / INDEX_FILE
        if not index.is_file():
            if not (folder / SINGLE_FILE).is_file():
                raise _no_safetensors(folder)
            return cls([folder / SINGLE_FILE])
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{index}: no weight_map from tensors to files")
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
                raise UserError(f"{index}: lists {name} in {shard}, which does not contain it")
        return files

    def path_of(self, name: str) -> Path:
        """The file that contains the tensor."""
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
                f"{path}: not a valid safetensors file ({error}); if it was downloaded, download it again"
            ) from error
        for name in names:
            header = file.get_slice(name)
            if header.get_dtype() not in DTYPES:
                raise UserError(
                    f"{path}: {name} has dtype {header.get_dtype()}; supported are {', '.join(DTYPES)}, no quantised "
                    "weights"
                )
            if name in self._files:
                raise UserError(f"{path}: {name} is also in {self._paths[name].name}")
            self._files[name], self._paths[name] = file, path
            self.shapes[name], self.dtypes[name] = tuple(header.get_shape()), DTYPES[header.get_dtype()]


def write_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    dtype: torch.dtype | None,
    max_shard_bytes: int,
) -> None:
    """Writes tensors into one file, or into shards of at most `max_shard_bytes` with an index.

    sizes: bytes of each tensor as written. dtype: None: unchanged; with a conversion one shard at a time is in memory.
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
    """Writes one safetensors file with the named tensors. Raises UserError if that fails, e.g. for a full disk."""
    try:
        save_file({name: tensors[name].to(dtype).contiguous() for name in names}, path, metadata)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be written ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """The operating system's message without the library's additions, with a hint for a full disk."""
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
            f"{pickles[0]} is a pickle, which could execute code: only safetensors are read, and {folder} has "
            f"no {SINGLE_FILE}"
        )
    return UserError(f"{folder}: no weights (neither {SINGLE_FILE} nor {INDEX_FILE})")

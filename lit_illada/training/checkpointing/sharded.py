"""Storage of sharded tensors: each process writes its parts, and any box of a tensor can be read back.

One safetensors file per process. Its header also holds, for every part, the tensor's full shape and the part's offset,
so that any number of processes can read what any other number has written. Nothing in the files is executed. Reading a
checkpoint must not import DTensor, which takes a second.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_illada.errors import UserError
from lit_illada.runtime.checksums import ChecksummedWriter, DamagedFileError

Box = tuple[slice, ...]
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_PARTS = "parts"


@dataclass(frozen=True, eq=False)
class Part:
    """A box of a tensor."""

    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    offset: tuple[int, ...]
    """Index in the whole tensor at which `values` begin."""
    values: Tensor
    """The elements of the box."""


def write_parts(file: ChecksummedWriter | BinaryIO, parts: Mapping[str, Part]) -> None:
    """Write parts, by tensor name, to a safetensors file, moving one at a time to the CPU."""
    # widest data types first, so that all offsets are aligned
    ordered = sorted(parts.items(), key=lambda item: -item[1].values.itemsize)
    described = {name: [part.shape, part.offset] for name, part in ordered}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", _PARTS: json.dumps(described)}}
    end = 0
    for name, part in ordered:
        begin, end = end, end + part.values.nbytes
        header[name] = {
            "dtype": _DTYPES[part.values.dtype],
            "shape": list(part.values.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)))
    file.write(text)
    for _, part in ordered:
        # writing a memory buffer releases the GIL, so that training continues meanwhile
        file.write(part.values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


class StoredTensor:
    """A tensor in checkpoint files. Indexing reads a box of it: a tuple of slices, or `[...]` for the whole tensor."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype
        self._parts: list[tuple[tuple[int, ...], tuple[int, ...], Any]] = []

    def add(self, offset: Sequence[int], shape: Sequence[int], file: Any) -> None:
        """Register a part of the tensor in an open file."""
        self._parts.append((tuple(offset), tuple(shape), file))

    def __getitem__(self, box: Any) -> Tensor:
        """Read a box: memory-mapped if it is exactly one part, else assembled from parts."""
        region: Box = tuple(slice(0, size) for size in self.shape) if box is ... else box
        shape = tuple(side.stop - side.start for side in region)
        candidates = [(self._common(region, offset, size), offset, file) for offset, size, file in self._parts]
        overlaps = [(common, offset, file) for common, offset, file in candidates if common is not None]
        if len(overlaps) == 1 and overlaps[0][0] == region:
            common, offset, file = overlaps[0]
            return file.get_tensor(self.name)[_moved(common, offset)]
        values = torch.empty(shape, dtype=self.dtype)
        begins = tuple(side.start for side in region)
        for common, offset, file in overlaps:
            values[_moved(common, begins)] = file.get_tensor(self.name)[_moved(common, offset)]
        if sum(math.prod(side.stop - side.start for side in common) for common, _, _ in overlaps) != math.prod(shape):
            raise UserError(f"{self.name}: a part of the tensor is missing from the checkpoint's files")
        return values

    def _common(self, region: Box, offset: tuple[int, ...], shape: tuple[int, ...]) -> Box | None:
        common = tuple(
            slice(max(side.start, begin), min(side.stop, begin + size))
            for side, begin, size in zip(region, offset, shape, strict=True)
        )
        return common if all(side.start < side.stop for side in common) else None


def open_parts(paths: Sequence[Path]) -> dict[str, StoredTensor]:
    """Open the files and list their tensors without reading them. Raises UserError for a missing or truncated file."""
    stored: dict[str, StoredTensor] = {}
    for path in paths:
        try:
            file = safe_open(str(path), "pt")
            described = json.loads(file.metadata()[_PARTS])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise DamagedFileError(f"{path}: not a whole file of a sharded checkpoint ({error})") from error
        for name, (shape, offset) in described.items():
            header = file.get_slice(name)
            if name not in stored:
                dtype = next(dtype for dtype, text in _DTYPES.items() if text == header.get_dtype())
                stored[name] = StoredTensor(name, tuple(shape), dtype)
            stored[name].add(offset, header.get_shape(), file)
    return stored


def _moved(box: Box, origin: tuple[int, ...]) -> Box:
    """The box relative to an origin."""
    return tuple(slice(side.start - begin, side.stop - begin) for side, begin in zip(box, origin, strict=True))

"""How do tensors that several processes share lie on disk? Each writes its own parts, and any box of any is read back.

One safetensors file a process. Its header also says of every part which tensor's it is: the whole's shape, and where
the part begins. So a tensor is read by any number of processes, however many have written it, and nothing in the files
is executed.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

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
    """A box of a tensor. shape: of the whole. offset: where `values` begin in it."""

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    values: Tensor


def local_box(tensor: DTensor) -> Box:
    """What of the whole this process holds."""
    assert not any(placement.is_partial() for placement in tensor.placements), tensor.placements
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(begin, begin + size) for begin, size in zip(offset, shape, strict=True))


def own_parts(tensors: Mapping[str, DTensor]) -> dict[str, tuple[int, ...]]:
    """What this process is to write: where its part of a tensor begins, for those that no other process writes.

    All processes ask at once. Of those that hold the same part, as under hybrid sharding, each writes some.
    """
    boxes = {name: local_box(tensor) for name, tensor in tensors.items() if tensor.to_local().numel()}
    held = {name: tuple((side.start, side.stop) for side in box) for name, box in boxes.items()}
    everywhere: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everywhere, held)
    mine = {}
    for number, name in enumerate(tensors):
        holders = [rank for rank, theirs in enumerate(everywhere) if name in held and theirs.get(name) == held[name]]
        if holders and holders[number % len(holders)] == dist.get_rank():
            mine[name] = tuple(begin for begin, _ in held[name])
    return mine


def write_parts(file: ChecksummedWriter | BinaryIO, parts: Mapping[str, Part]) -> None:
    """The parts by the names of their tensors, from wherever they are, one at a time."""
    # the widest numbers first, so that all are aligned
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
        # a plain write of memory: Python lets the training go on meanwhile
        file.write(part.values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


class StoredTensor:
    """A tensor in the files; a box of it is read when asked for, `stored[2:4, :]` as of a tensor, or all by `[...]`."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype
        self._parts: list[tuple[tuple[int, ...], tuple[int, ...], Any]] = []

    def add(self, offset: Sequence[int], shape: Sequence[int], file: Any) -> None:
        """A part of it, in an open file."""
        self._parts.append((tuple(offset), tuple(shape), file))

    def __getitem__(self, box: Any) -> Tensor:
        """Mapped from the file where one part is all that is asked for, else put together."""
        asked: Box = tuple(slice(0, size) for size in self.shape) if box is ... else box
        shape = tuple(side.stop - side.start for side in asked)
        found = [(self._common(asked, offset, size), offset, file) for offset, size, file in self._parts]
        overlaps = [(common, offset, file) for common, offset, file in found if common is not None]
        if len(overlaps) == 1 and overlaps[0][0] == asked:
            common, offset, file = overlaps[0]
            return file.get_tensor(self.name)[_moved(common, offset)]
        values = torch.empty(shape, dtype=self.dtype)
        begins = tuple(side.start for side in asked)
        for common, offset, file in overlaps:
            values[_moved(common, begins)] = file.get_tensor(self.name)[_moved(common, offset)]
        if sum(math.prod(side.stop - side.start for side in common) for common, _, _ in overlaps) != math.prod(shape):
            raise UserError(f"{self.name}: a part of it is in none of the checkpoint's files")
        return values

    def _common(self, asked: Box, offset: tuple[int, ...], shape: tuple[int, ...]) -> Box | None:
        common = tuple(
            slice(max(side.start, begin), min(side.stop, begin + size))
            for side, begin, size in zip(asked, offset, shape, strict=True)
        )
        return common if all(side.start < side.stop for side in common) else None


def open_parts(paths: Sequence[Path]) -> dict[str, StoredTensor]:
    """All tensors of the files, none read yet. Raises UserError for a file that is missing or cut off."""
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
    """The box as seen from an origin."""
    return tuple(slice(side.start - begin, side.stop - begin) for side, begin in zip(box, origin, strict=True))

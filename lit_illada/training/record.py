"""The record that a run appends to its folder: TensorBoard's events, generated samples and answers.

A checkpoint holds the sizes that these files had when it was taken. A run that resumes from it takes them back to those
sizes first, so that what a killed process wrote after the checkpoint appears once: the record equals that of a run
which was never killed.
"""

import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event

from lit_illada.runtime.files import FileError

EVENTS = "events.out.tfevents.*"
_APPENDED = ("samples.txt", "answers.jsonl")
# points at the checkpoint's own step that follow it, since they say how long it took
_OF_CHECKPOINT = "perf/checkpoint_"


def record_sizes(folder: Path) -> dict[str, int]:
    """The size of every file of the record, by name. Buffers must be flushed before."""
    return {file.name: file.stat().st_size for file in record_files(folder)}


def record_files(folder: Path) -> list[Path]:
    """The files of the record that exist; symbolic links are left out, since they may lead outside the folder."""
    found = [*folder.glob(EVENTS), *(folder / name for name in _APPENDED)]
    return sorted(file for file in found if file.is_file() and not file.is_symlink())


def truncate_records(files: Iterable[Path], sizes: Mapping[str, int], step: int) -> None:
    """Remove what the files of a record gained after the checkpoint of `step`, at which they had these sizes.

    files: `record_files` as they were before this process began to append. A file without a size was begun later.
    Raises FileError where a file cannot be changed.
    """
    for file in files:
        size = sizes.get(file.name, 0)
        is_events = file.name not in _APPENDED
        after = list(_points_of_checkpoint(file, size, step)) if is_events else []
        try:
            if size == 0 and not after:
                file.unlink()
            elif file.stat().st_size > size:
                _truncate(file, size, after)
        except OSError as error:
            raise FileError(f"{file}: cannot be taken back to the checkpoint ({error.strerror})") from error


def _truncate(file: Path, size: int, after: list[bytes]) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_NOFOLLOW)
    with os.fdopen(handle, "wb", closefd=True) as stream:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            stream.truncate(size)
            stream.seek(size)
            stream.writelines(after)


def _points_of_checkpoint(file: Path, start: int, step: int) -> Iterator[bytes]:
    """The records of an event file behind `start` that belong to the checkpoint of this step, as they are stored."""
    for content in _records(file, start):
        try:
            event = Event.FromString(content[12:-4])
        except DecodeError:
            return
        values = event.summary.value
        is_first = start == 0 and event.HasField("file_version")  # readers want it at the head of a file
        if is_first or (event.step == step and values and values[0].tag.startswith(_OF_CHECKPOINT)):
            yield content


def _records(file: Path, start: int) -> Iterator[bytes]:
    """The whole records behind `start`: length (8 bytes), its checksum (4), content, its checksum (4)."""
    with file.open("rb") as stream:
        stream.seek(start)
        while len(head := stream.read(12)) == 12:
            (length,) = struct.unpack("<Q", head[:8])
            body = stream.read(min(length + 4, 2**26))
            if len(body) != length + 4:
                return  # a kill has cut the last one
            yield head + body

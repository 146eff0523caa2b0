"""Append-only records of a run folder: TensorBoard events, generated samples and answers.

A checkpoint stores the sizes of these files. A run that resumes from it first truncates them to those sizes, so that
points a killed process logged after the checkpoint do not appear twice, and the records equal those of a run that was
never killed.
"""

import os
import stat
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event

from lit_illada.runtime.files import FileError

EVENTS = "events.out.tfevents.*"
_APPENDED = ("samples.txt", "answers.jsonl")
# logged after the checkpoint they belong to, because they measure how long it took to write
_OF_CHECKPOINT = "perf/checkpoint_"


def record_sizes(folder: Path) -> dict[str, int]:
    """Sizes of the record files in bytes, by name. Loggers must be flushed before."""
    return {file.name: file.stat().st_size for file in record_files(folder)}


def record_files(folder: Path) -> list[Path]:
    """Existing record files; symbolic links are excluded, since they may lead outside the folder."""
    files = [*folder.glob(EVENTS), *(folder / name for name in _APPENDED)]
    return sorted(file for file in files if file.is_file() and not file.is_symlink())


def wait_for_later_name(folder: Path) -> None:
    """Wait until a new event file's name sorts after the existing ones, at most a second.

    Names contain the creation time in whole seconds; TensorBoard reads the files of a run in the order of their names.
    """
    stamps = [file.name.split(".")[3] for file in folder.glob(EVENTS)]
    newest = max((int(stamp) for stamp in stamps if stamp.isdecimal()), default=0)
    wait_s = newest + 1 - time.time()
    if 0 < wait_s <= 1:
        time.sleep(wait_s)


def truncate_records(files: Iterable[Path], sizes: Mapping[str, int], step: int) -> None:
    """Remove what was appended to record files after the checkpoint of `step`.

    Args:
        files: `record_files` from before this process began to append.
        sizes: sizes at the checkpoint, in bytes; a file without one was created later and is removed.
        step: the checkpoint's step; points about the checkpoint itself are retained.

    Raises:
        FileError: a file cannot be changed.
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
            raise FileError(f"{file}: cannot be truncated to the checkpoint ({error.strerror})") from error


def _truncate(file: Path, size: int, after: list[bytes]) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_NOFOLLOW)
    with os.fdopen(handle, "wb", closefd=True) as stream:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            stream.truncate(size)
            stream.seek(size)
            stream.writelines(after)


def _points_of_checkpoint(file: Path, start: int, step: int) -> Iterator[bytes]:
    """Raw records of an event file after offset `start` that belong to the checkpoint of this step."""
    for content in _records(file, start):
        try:
            event = Event.FromString(content[12:-4])
        except DecodeError:
            return
        values = event.summary.value
        is_first = start == 0 and event.HasField("file_version")  # readers expect it as a file's first record
        if is_first or (event.step == step and values and values[0].tag.startswith(_OF_CHECKPOINT)):
            yield content


def _records(file: Path, start: int) -> Iterator[bytes]:
    """Complete raw records after offset `start`: length (8 bytes), its checksum (4), content, its checksum (4)."""
    with file.open("rb") as stream:
        stream.seek(start)
        while len(head := stream.read(12)) == 12:
            (length,) = struct.unpack("<Q", head[:8])
            body = stream.read(min(length + 4, 2**26))
            if len(body) != length + 4:
                return  # the last record is incomplete after a kill
            yield head + body

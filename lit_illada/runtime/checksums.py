"""Checksums of files, to detect damage: flipped bits, truncated copies, lost blocks. They do not detect forgery.

The checksum of a file is the CRC-32 of the CRC-32s of its 16 MiB blocks, so that a writer can compute it while writing
and a reader with several threads. It is stored in one of two places:

- in a JSON file beside the files that it covers, such as `checksums.json` of an exported folder;
- in the file itself, as the comment of a zip archive, which is what `torch.save` writes.
"""

import os
import re
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import IO

from lit_illada.runtime.files import ContentError, FileError, read_json, write_json

CHECKSUMS_FILE = "checksums.json"
BLOCK_BYTES = 16 * 2**20
_CHUNK_BYTES = 2**20  # of one read
_COMMENT = b"lit_illada checksum "
_COMMENT_BYTES = len(_COMMENT) + 8


class DamagedFileError(ContentError):
    """A file whose content differs from what was written."""


class Checksum:
    """Incremental checksum of a byte stream."""

    def __init__(self) -> None:
        self._blocks = 0  # CRC-32 of the CRC-32s of the complete blocks
        self._block = 0  # CRC-32 of the block in progress
        self._filled = 0  # bytes in the block in progress
        self.num_bytes = 0

    def update(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        view = memoryview(data).cast("B")
        while view:
            piece = view[: BLOCK_BYTES - self._filled]
            self._block = zlib.crc32(piece, self._block)
            self._filled += len(piece)
            self.num_bytes += len(piece)
            view = view[len(piece) :]
            if self._filled == BLOCK_BYTES:
                self._blocks = zlib.crc32(_packed(self._block), self._blocks)
                self._block = self._filled = 0

    def hexdigest(self) -> str:
        """Return the checksum so far, 8 hexadecimal digits."""
        return f"{zlib.crc32(_packed(self._block), self._blocks) if self._filled else self._blocks:08x}"


class ChecksummedWriter:
    """A binary stream for writing that computes the checksum of the bytes written.

    error: the OSError of a failed write, or None; a C++ library that writes to the stream may raise another exception.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._checksum = Checksum()
        self._last = b""  # the last two bytes, not in the checksum yet: in a zip archive, the length of its comment
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        try:
            self._stream.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        view = memoryview(data).cast("B")
        if len(view) >= 2:
            self._checksum.update(self._last)
            self._checksum.update(view[:-2])
            self._last = bytes(view[-2:])
        else:
            joined = self._last + bytes(view)
            self._checksum.update(joined[:-2])
            self._last = joined[-2:]
        return len(view)

    def flush(self) -> None:
        self._stream.flush()

    def hexdigest(self) -> str:
        """Return the checksum of all bytes written. Nothing can be written afterwards."""
        self._checksum.update(self._last)
        self._last = b""
        return self._checksum.hexdigest()

    @property
    def num_bytes(self) -> int:
        return self._checksum.num_bytes + len(self._last)

    def end_zip(self) -> None:
        """Store the checksum as the comment of the zip archive written. Nothing can be written afterwards."""
        self._stream.seek(-2, os.SEEK_END)
        self._stream.write(_COMMENT_BYTES.to_bytes(2, "little"))
        self._stream.write(_COMMENT + self._checksum.hexdigest().encode())


def check_zip(path: Path) -> bool:
    """Verify a zip archive against the checksum in its comment. Returns false for an archive without one.

    Raises DamagedFileError if the content does not match, FileError for a file that cannot be read.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            if size < _COMMENT_BYTES + 2:
                return False
            stream.seek(-_COMMENT_BYTES - 2, os.SEEK_END)
            end = stream.read()
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror})") from error
    if not (match := re.fullmatch(re.escape(_COMMENT) + rb"([0-9a-f]{8})", end[2:])):
        return False
    is_whole = int.from_bytes(end[:2], "little") == _COMMENT_BYTES
    if not is_whole or file_checksum(path, size - _COMMENT_BYTES - 2) != match[1].decode():
        raise DamagedFileError(f"{path}: damaged, its content does not match its checksum")
    return True


def write_checksums(file: Path, digests: Mapping[str, tuple[int, str]]) -> None:
    """Write a JSON file of checksums. digests: (number of bytes, checksum) by the name of a file beside it."""
    files = {name: {"bytes": num_bytes, "checksum": digest} for name, (num_bytes, digest) in digests.items()}
    write_json(file, {"files": files, "checksum": _of_listing(files)})


def write_folder_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write `checksums.json` of a folder for these files, given as relative paths. Reads each file once."""
    write_checksums(
        folder / CHECKSUMS_FILE,
        {name: ((folder / name).stat().st_size, file_checksum(folder / name)) for name in names},
    )


def check_folder(folder: Path) -> set[str] | None:
    """Verify the files listed in `checksums.json` of a folder; see `check_files`. Returns None without that file."""
    file = folder / CHECKSUMS_FILE
    return check_files(file) if os.path.lexists(file) else None


def check_files(file: Path) -> set[str]:
    """Verify all files that a JSON file of checksums lists, and return their names.

    Raises DamagedFileError, naming the damaged or missing file.
    """
    content = read_json(file)
    files = content.get("files")
    if not isinstance(files, dict) or content.get("checksum") != _of_listing(files):
        raise DamagedFileError(f"{file}: damaged, its content does not match its checksum")
    for name, expected in files.items():
        path = file.parent / name
        if not path.is_file():
            raise DamagedFileError(f"{path}: missing, although {file.name} lists it")
        if (size := path.stat().st_size) != expected["bytes"]:
            problem = f"{size:,} bytes instead of {expected['bytes']:,}"
        elif file_checksum(path) != expected["checksum"]:
            problem = f"its content does not match its checksum in {file.name}"
        else:
            continue
        raise DamagedFileError(
            f"{path}: damaged, {problem}; restore it (or remove {file.name} if the change was intended)"
        )
    return set(files)


def file_checksum(path: Path, num_bytes: int | None = None) -> str:
    """Return the checksum of a file, or of its first `num_bytes`. Cached per process for an unchanged file."""
    status = path.stat()
    return _file_checksum(
        path.resolve(), status.st_size if num_bytes is None else num_bytes, status.st_mtime_ns, status.st_ino
    )


@lru_cache(maxsize=4096)
def _file_checksum(path: Path, num_bytes: int, mtime_ns: int, inode: int) -> str:
    starts = range(0, num_bytes, BLOCK_BYTES)
    try:
        if len(starts) <= 1:
            blocks = [_block_crc(path, start, num_bytes) for start in starts]
        else:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # zlib and reads release the GIL
                blocks = list(pool.map(lambda start: _block_crc(path, start, num_bytes), starts))
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror})") from error
    return f"{zlib.crc32(b''.join(map(_packed, blocks))):08x}"


def _block_crc(path: Path, start: int, num_bytes: int) -> int:
    crc, left = 0, min(BLOCK_BYTES, num_bytes - start)
    with path.open("rb", buffering=0) as stream:
        stream.seek(start)
        while left and (piece := stream.read(min(_CHUNK_BYTES, left))):
            crc = zlib.crc32(piece, crc)
            left -= len(piece)
    return crc


def _packed(crc: int) -> bytes:
    return crc.to_bytes(4, "little")


def _of_listing(files: Mapping[str, object]) -> str:
    return f"{zlib.crc32(repr(sorted(files.items())).encode()):08x}"

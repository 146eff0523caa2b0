"""Reads and writes the package's own text, JSON, YAML and JSON Lines files.

Every failure (a missing file, invalid UTF-8 or JSON, another type of content, a size, depth or number beyond its limit,
a full disk) is a `FileError` whose one-line message names the file and the reason. Limits bound the time and memory of
reading any file.
"""

import errno
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from lit_illada.errors import UserError

MAX_FILE_BYTES = 64 * 2**20  # of a file read at once
MAX_LINE_BYTES = 32 * 2**20  # of one line of a JSON Lines file
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # first bytes of gzip and Zstandard
MAX_DEPTH = 100  # nested lists and objects
MAX_DIGITS = 300  # of one integer


class FileError(UserError, OSError):
    """A file that cannot be read, written or parsed. `errno` is set if the operating system reports one."""


class MissingFileError(FileError):
    """A file that does not exist."""


class ContentError(FileError):
    """A file that was read, but has invalid content."""


def write_atomically(path: Path, content: str | bytes, *, is_durable: bool = True) -> None:
    """Write a file by renaming a temporary one, so that readers see the old content or the new.

    A symbolic link at `path` is replaced, not followed. Raises FileError, for example if the disk is full.

    is_durable: flush to disk first, so that the file survives a loss of power.
    """
    temporary = temporary_of(path)
    try:
        with temporary.open("wb") as stream:
            stream.write(content if isinstance(content, bytes) else content.encode("utf-8"))
            if is_durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _os_error(path, error, "cannot be written") from error
    finally:
        with suppress(OSError):  # if the folder is gone or read-only, the error that matters has been raised already
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write one JSON value atomically."""
    write_atomically(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Append a line to a regular file, after removing an incomplete last line of a killed process.

    Raises FileError for a symbolic link, which may lead outside the folder. Not safe for concurrent writers.
    """
    try:
        with os.fdopen(open_own(path, os.O_RDWR), "r+b") as stream:
            stream.seek(_end_of_lines(stream))
            stream.truncate()
            stream.write(line.encode("utf-8") + b"\n")
    except FileError:
        raise
    except OSError as error:
        raise _os_error(path, error, "cannot be written") from error


@contextmanager
def open_to_append(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file to append to, created if missing; see `open_own`. newline: as for `open`."""
    with os.fdopen(open_own(path, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8", newline=newline) as stream:
        yield stream


def open_own(path: Path, flags: int) -> int:
    """Open a file that the package writes, created if missing, and return its descriptor. flags: as for `os.open`.

    Raises FileError for a symbolic link, which may lead outside the folder, and for a folder, a pipe or a device.
    """
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FileError(f"{path}: is a symbolic link; remove it, nothing was written through it") from error
        raise _os_error(path, error, "cannot be written") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileError(f"{path}: not a regular file; nothing was written to it")
    return descriptor


def _end_of_lines(stream: BinaryIO) -> int:
    """Return the offset after the last newline; 0 without one."""
    end = stream.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - 2**16)
        stream.seek(begin)
        if (newline := stream.read(end - begin).rfind(b"\n")) >= 0:
            return begin + newline + 1
        end = begin
    return 0


def temporary_of(path: Path) -> Path:
    """Return a temporary name in the same folder, unique across calls, processes and machines."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises MissingFileError, and FileError for a folder, a pipe or a device.

    A pipe without a writer would block the reader, and a device may have no end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise _os_error(path, error, "cannot be read") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise FileError(f"{path}: {'Is a directory' if stat.S_ISDIR(mode) else 'not a regular file'}")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read a file. Raises MissingFileError, and FileError for more than `max_bytes`."""
    with open_regular(path) as stream:
        try:
            content = stream.read(max_bytes + 1)
        except OSError as error:
            raise _os_error(path, error, "cannot be read") from error
    if len(content) > max_bytes:
        raise ContentError(f"{path}: larger than the limit of {max_bytes / 2**20:g} MiB")
    return content


def read_text(path: Path, max_bytes: int = MAX_FILE_BYTES) -> str:
    """Read a UTF-8 file. Raises FileError for a missing file, invalid UTF-8, or more than `max_bytes`."""
    return decode_utf8(read_bytes(path, max_bytes), str(path))


def decode_utf8(content: bytes, origin: str) -> str:
    """Decode UTF-8. Raises ContentError, naming `origin` and the offset of the first invalid byte."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        hint = ", it is compressed: decompress it first" if content.startswith(_COMPRESSED) else ""
        raise ContentError(f"{origin}: not UTF-8 text at byte {error.start}{hint}") from error


def read_json(path: Path, kind: type = dict, *, max_bytes: int = MAX_FILE_BYTES) -> Any:
    """Read a JSON file. kind: required type (dict, list, or object for any). Raises FileError."""
    return parse_json(read_bytes(path, max_bytes), str(path), kind)


def read_json_lines(path: Path, *, is_log: bool = False) -> list[dict[str, Any]]:
    """Read a JSON Lines file: one object per non-blank line. Raises FileError, naming the line.

    is_log: skip a last line without a newline, which a killed process has left incomplete.
    """
    return [record for _, record in iterate_json_lines(path, is_log=is_log)]


def iterate_json_lines(path: Path, *, is_log: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSON Lines file of any size; see `read_json_lines`."""
    try:
        with open_regular(path) as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise ContentError(f"{path}, line {number}: longer than the limit of {MAX_LINE_BYTES >> 20} MiB")
                if line.strip() and not (is_log and not line.endswith(b"\n")):
                    yield number, parse_json(line, f"{path}, line {number}")
    except FileError:
        raise
    except OSError as error:
        raise _os_error(path, error, "cannot be read") from error


def parse_json(
    text: str | bytes, origin: str, kind: type = dict, *, parse_int: Callable[[str], Any] | None = None
) -> Any:
    """Parse a JSON value of the given type (dict, list, or object for any).

    Args:
        origin: file name for error messages.
        parse_int: converts an integer's digits; None: `int`, for at most MAX_DIGITS digits.

    Raises:
        ContentError: invalid UTF-8 or JSON, another type, or nesting deeper than MAX_DEPTH.
    """
    if isinstance(text, bytes):
        text = decode_utf8(text, origin)
    try:
        value = (json.JSONDecoder(parse_int=parse_int) if parse_int else _DECODER).decode(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ContentError(f"{origin}: not JSON ({error.msg} at {line}column {error.colno})") from error
    except RecursionError as error:
        raise _too_deep(origin) from error
    except ValueError as error:
        raise ContentError(f"{origin}: {error}") from error
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _require_depth(value, origin)
    require_kind(value, kind, origin)
    return value


def require_kind(value: Any, kind: type, origin: str) -> None:
    """Raise ContentError for a value of another type, such as a list instead of an object."""
    if not isinstance(value, kind):
        wanted, seen = KINDS.get(kind, kind.__name__), KINDS.get(type(value), type(value).__name__)
        raise ContentError(f"{origin}: must be {wanted}, not {seen}")


KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    datetime: "a date and time",
}


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits, over the limit of {MAX_DIGITS}")
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_integer)  # json.loads would build a new one in each call


def _require_depth(value: Any, origin: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        containers = [item for item in level if isinstance(item, dict | list)]
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return
    raise _too_deep(origin)


def _too_deep(origin: str) -> ContentError:
    return ContentError(f"{origin}: nested deeper than the limit of {MAX_DEPTH} levels")


def _os_error(path: Path, error: OSError | ValueError, what: str) -> FileError:
    number = getattr(error, "errno", None)
    hint = "; free some space and run it again" if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
    raised = FileError(f"{path}: {what} ({getattr(error, 'strerror', None) or error}){hint}")
    raised.errno = number
    return raised

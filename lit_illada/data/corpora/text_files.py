"""Finds, opens (plain, .gz, .zst) and decodes text files; errors name the file and the byte offset.

The sizes of lines, of files read at once and of decompressed content are limited, so that a hostile file takes bounded
memory and time.
"""

import codecs
import difflib
import glob
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from lit_illada.errors import UserError
from lit_illada.runtime.files import MAX_LINE_BYTES, MissingFileError

_COMPRESSED = (".gz", ".zst")
MAX_TEXT_BYTES = 2**30  # of a file that is read at once
MAX_EXPANSION = 200  # decompressed bytes per byte of a file; text compresses 3 to 30 times
_ALWAYS_EXPANDED = 64 * 2**20  # decompressed bytes allowed for any file, however small


def find_files(paths: Sequence[str], suffixes: Sequence[str] | None = None) -> list[Path]:
    """Files matched by paths, globs and folders, without repetition, sorted within an entry.

    suffixes: suffixes of the files to take from a folder, compressed or not; None: all files. Hidden files of a folder
    are ignored. Raises MissingFileError for an entry that matches no file.
    """
    files: dict[Path, None] = {}
    for entry in paths:
        files.update(dict.fromkeys(_expand(entry, suffixes)))
    return list(files)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises UserError for a binary file, invalid UTF-8 (with the byte offset), a corrupt compressed file, or more than
    MAX_TEXT_BYTES.
    """
    return decode(read_content(path), str(path))


def read_content(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """The decompressed content of a file. Raises UserError for a corrupt compressed file and more than `max_bytes`."""
    limit = min(max_bytes, _expansion_limit(path))
    with _opened(path) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise _too_long(path, limit, max_bytes)
    return content


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields (byte offset in the text, bytes) of each line, line end included.

    Raises UserError for a corrupt compressed file, one that expands beyond its limit, and a line over MAX_LINE_BYTES.
    """
    offset, number = 0, 0
    limit = _expansion_limit(path)
    with _opened(path) as stream:
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{path}:{number}: the line is longer than the limit of {MAX_LINE_BYTES >> 20} MiB")
            if offset + len(line) > limit:
                raise _too_long(path, limit, limit)
            yield offset, line
            offset += len(line)


def _expansion_limit(path: Path) -> int:
    """Bytes that a compressed file may expand to; practically unlimited for a plain file."""
    if path.suffix not in _COMPRESSED or not path.is_file():
        return 2**62
    return max(_ALWAYS_EXPANDED, MAX_EXPANSION * path.stat().st_size)


def _too_long(path: Path, limit: int, max_bytes: int) -> UserError:
    if limit < max_bytes or path.suffix in _COMPRESSED:
        return UserError(f"{path}: expands to more than the limit of {limit / 2**20:.0f} MiB for a file of its size")
    return UserError(f"{path}: larger than the limit of {limit / 2**20:.0f} MiB")


def decode(raw: bytes, origin: str, offset: int = 0) -> str:
    """Decodes UTF-8. offset: of `raw` in the file, for messages. Raises UserError for binary and invalid content."""
    if (zero := raw.find(b"\0")) >= 0:
        raise UserError(f"{origin}: binary file (a zero byte at offset {offset + zero}); give text files only")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{origin}: broken UTF-8 at byte offset {offset + error.start} ({error.reason}); convert the file "
            "to UTF-8, or set data.on_bad_document=skip"
        ) from error


def text_in(path: Path, encoding: str | None, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """The text of a file in any encoding. encoding: None: UTF-8, or UTF-16 with a byte-order mark.

    Raises UserError as `read_content` does, for an unknown encoding, and for bytes that are not in it.
    """
    return _decode_as(read_content(path, max_bytes), path, _encoding_of(path, encoding), 0)


def lines_in(path: Path, encoding: str | None, max_bytes: int = MAX_TEXT_BYTES) -> Iterator[str]:
    """The lines of a file in any encoding, as `text_in`. max_bytes: of a file in UTF-16 or UTF-32."""
    if _encoding_of(path, encoding).startswith(("utf-16", "utf-32")):  # a byte of theirs may look like a line end
        yield from text_in(path, encoding, max_bytes).split("\n")
        return
    for offset, line in raw_lines(path):
        yield _decode_as(line, path, encoding, offset)


def _encoding_of(path: Path, encoding: str | None) -> str:
    """Python's name of the encoding of a file."""
    with _opened(path) as stream:
        first = stream.read(2)
    if encoding is None:
        return "utf-16" if first in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        return codecs.lookup(encoding).name
    except LookupError as error:
        raise _unknown_encoding(encoding) from error


def _decode_as(raw: bytes, path: Path, encoding: str | None, offset: int) -> str:
    """Decode bytes that begin at an offset of a file. encoding: None: UTF-8."""
    try:
        text = raw.decode(encoding or "utf-8-sig")
        return text if offset else text.removeprefix("\ufeff")
    except LookupError as error:
        raise _unknown_encoding(encoding or "") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not {encoding or 'UTF-8'} at byte {offset + error.start} ({error.reason}); --encoding names "
            "another, such as latin-1"
        ) from error


def _unknown_encoding(encoding: str) -> UserError:
    return UserError(f"unknown encoding {encoding!r}; try utf-8, utf-16, latin-1 or cp1252")


def plain_size(files: Sequence[Path]) -> int | None:
    """Bytes of text in the files; None if some are compressed, as their size is unknown without reading them."""
    if any(path.suffix in _COMPRESSED for path in files):
        return None
    return sum(path.stat().st_size for path in files)


def _expand(entry: str, suffixes: Sequence[str] | None) -> list[Path]:
    path = Path(entry).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and _is_selected(p.relative_to(path), suffixes))
        if not files:
            kinds = "no files" if suffixes is None else f"no {' or '.join(suffixes)} files"
            raise MissingFileError(f"{entry}: the folder contains {kinds}")
        return files
    if glob.has_magic(entry):
        files = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not files:
            raise MissingFileError(f"{entry}: no file matches this pattern")
        return files
    raise _missing(path)


def _is_selected(path: Path, suffixes: Sequence[str] | None) -> bool:
    if any(part.startswith(".") for part in path.parts):
        return False
    plain = path.with_suffix("") if path.suffix in _COMPRESSED else path
    return suffixes is None or plain.suffix in suffixes


def _missing(path: Path) -> MissingFileError:
    folder = path.parent
    if not folder.is_dir():
        return MissingFileError(f"{path}: no such file, and no folder {folder}")
    close = difflib.get_close_matches(path.name, [p.name for p in folder.iterdir()], n=1, cutoff=0.5)
    hint = f"; did you mean {str(folder / close[0])!r}?" if close else ""
    return MissingFileError(f"{path}: no such file{hint}")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with _open(path) as stream:
            yield stream
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError, EOFError) as error:
        raise UserError(f"{path}: broken compressed file ({error}); compress or download it again") from error
    except PermissionError as error:
        raise UserError(f"{path}: may not be read ({error.strerror})") from error


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.suffix == ".zst":
        # without read_across_frames the text of concatenated archives would silently end after the first one
        reader = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True)
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, reader), 2**20))
    return path.open("rb")

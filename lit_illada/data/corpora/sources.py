"""Iterators over the documents of each source, with the origin of each document for messages.

Documents are read one at a time, so a corpus may be larger than memory.
"""

import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lit_illada.data.config import HuggingFaceSource, JsonlSource, PreparedSource, Source, StdlibSource, TextSource
from lit_illada.data.corpora.text_files import decode, find_files, plain_size, raw_lines, read_text
from lit_illada.data.sections import NearDuplicates, sections
from lit_illada.errors import UserError
from lit_illada.runtime.files import parse_json

OnBad = Callable[[UserError], None]
"""Called with the error of each unreadable document, which is skipped unless the call raises."""

_STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
_STDLIB_SUFFIXES = (".py", ".txt", ".rst", ".md")


@dataclass(frozen=True)
class Document:
    """A document of a corpus."""

    text: str
    origin: str
    """A file, file:line, or data set[row]."""


def files_of(source: Source) -> list[Path]:
    """The files of a source in reading order. Raises UserError for a source without files."""
    match source:
        case StdlibSource():
            return _stdlib_files()
        case TextSource(paths):
            return _named_files(paths)
        case JsonlSource(paths):
            return _named_files(paths, (".jsonl",))
        case HuggingFaceSource():
            raise UserError(
                "data.source=huggingface is one stream, not files: use `lit-illada data prepare` without --workers"
            )
        case PreparedSource():
            raise UserError("data.source=prepared has no documents to prepare: choose another source")


def read(source: Source, on_bad: OnBad, files: list[Path] | None = None) -> Iterator[Document]:
    """Yields the documents of a source in a deterministic order.

    on_bad: called with the error of each unreadable document, which is skipped unless the call raises.
    files: the files of the source to read; None: all.
    Raises UserError for errors that concern the whole source, such as a missing file or library.
    """
    if isinstance(source, HuggingFaceSource):
        return _hugging_face(source, on_bad)
    named = files_of(source) if files is None else files
    match source:
        case StdlibSource():
            return _stdlib(named, on_bad)
        case TextSource(_, str(separator)):
            return _separated(named, separator, on_bad)
        case JsonlSource(_, text_field):
            return _jsonl(named, text_field, on_bad)
        case _:
            return _whole_files(named, on_bad)


def total_bytes(source: Source) -> int | None:
    """Bytes of text in a source, for a progress bar; None: unknown without reading the source."""
    match source:
        case StdlibSource() | TextSource():
            return plain_size(files_of(source))
        case _:
            return None


def _named_files(paths: list[str], suffixes: tuple[str, ...] | None = None) -> list[Path]:
    if not paths:
        raise UserError("data.source.paths is empty: name files, globs or folders, e.g. data.source.paths=[corpus/]")
    return find_files(paths, suffixes)


def _stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _STDLIB_LEFT_OUT]
        files += [Path(folder, name) for name in names if name.endswith(_STDLIB_SUFFIXES)]
    if not files:
        raise UserError(f"the standard library at {root} contains no text files: choose another data.source")
    return sorted(files)


def _stdlib(files: list[Path], on_bad: OnBad) -> Iterator[Document]:
    """Sections of these files that are not near-duplicates of an earlier section in any file of the library."""
    wanted, near_duplicates = set(files), NearDuplicates()
    # also reads files that are not wanted, since near-duplicates depend on all earlier sections
    for path in _stdlib_files():
        if not wanted:
            return
        try:
            text = read_text(path)
        except UserError as error:
            if path in wanted:
                on_bad(error)
        else:
            for line, section in sections(text):
                if near_duplicates.accepts(section) and path in wanted:
                    yield Document(section, f"{path}:{line}")
        wanted.discard(path)


def _whole_files(files: list[Path], on_bad: OnBad) -> Iterator[Document]:
    for path in files:
        try:
            text = read_text(path)
        except UserError as error:
            on_bad(error)
        else:
            yield Document(text, str(path))


def _separated(files: list[Path], separator: str, on_bad: OnBad) -> Iterator[Document]:
    for path in files:
        parts: list[str] = []
        first = 1
        try:
            for number, (offset, raw) in enumerate(raw_lines(path), 1):
                line = decode(raw, str(path), offset)
                if line.strip() == separator:
                    yield Document("".join(parts), f"{path}:{first}")
                    parts, first = [], number + 1
                else:
                    parts.append(line)
        except UserError as error:
            on_bad(error)
        else:
            yield Document("".join(parts), f"{path}:{first}")


def json_objects(files: list[Path], on_bad: OnBad) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields each JSON object and its file:line; blank lines are skipped."""
    for path in files:
        try:
            for number, (_, raw) in enumerate(raw_lines(path), 1):
                origin = f"{path}:{number}"
                try:
                    record = _json_object(decode(raw, origin), origin)
                except UserError as error:
                    on_bad(error)
                else:
                    if record is not None:
                        yield record, origin
        except UserError as error:
            on_bad(error)


def _json_object(line: str, origin: str) -> dict[str, Any] | None:
    if not line.strip():
        return None
    record: dict[str, Any] = parse_json(line, origin)
    return record


def _jsonl(files: list[Path], text_field: str, on_bad: OnBad) -> Iterator[Document]:
    for record, origin in json_objects(files, on_bad):
        try:
            document = _document(record, text_field, origin)
        except UserError as error:
            on_bad(error)
        else:
            yield document


def _hugging_face(source: HuggingFaceSource, on_bad: OnBad) -> Iterator[Document]:
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.source=huggingface needs the datasets library: pip install 'lit-illada[hf]'") from error
    try:
        rows = datasets.load_dataset(source.path, source.subset, split=source.split, streaming=True)
    except (OSError, ValueError) as error:  # raised by the library and the hub's client for a wrong name or no network
        raise _hub_error(source, error) from error
    try:
        for number, row in enumerate(islice(rows, source.max_documents)):
            try:
                yield _document(row, source.text_field, f"{source.path}[{number}]")
            except UserError as error:
                on_bad(error)
    except OSError as error:
        raise _hub_error(source, error) from error


def _hub_error(source: HuggingFaceSource, error: Exception) -> UserError:
    subset = f" ({source.subset})" if source.subset else ""
    message = " ".join(str(error).split())
    return UserError(f"Hugging Face data set {source.path}{subset}, split {source.split}: {message}")


def _document(record: dict[str, Any], text_field: str, origin: str) -> Document:
    if text_field not in record:
        fields = ", ".join(map(str, record)) or "none"
        raise UserError(f"{origin}: no field {text_field!r}; fields seen: {fields}. Set data.source.text_field")
    text = record[text_field]
    if not isinstance(text, str):
        raise UserError(f"{origin}: field {text_field!r} holds a {type(text).__name__}, not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{origin}: field {text_field!r} contains an unpaired surrogate, which is not valid text"
        ) from error
    return Document(text, origin)

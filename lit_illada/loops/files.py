"""Reads the objects in files of generations, and the facts that their names contain.

Formats: JSON Lines; JSON with a list, or in d1's layout; CSV and TSV with a header; Parquet. Any other file is one
text. All but Parquet may be compressed (.gz, .zst).
"""

import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_illada.data.corpora.text_files import lines_in, text_in
from lit_illada.errors import UserError
from lit_illada.runtime.files import MAX_LINE_BYTES, parse_json
from lit_illada.runtime.lazy import LazyModule

pa = LazyModule("pyarrow")  # most files are no Parquet
parquet = LazyModule("pyarrow.parquet")

_D1 = re.compile(r"(?P<task>[^_]+)_(?P<model>.+?)_(?P<length>\d+)_(?P<steps>\d+)_\d+_generations")
_LM_EVAL = re.compile(r"samples_(?P<task>.+?)(?:_\d{4}-\d\d-\d\dT.*)?")

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_MAX_LINE = MAX_LINE_BYTES  # characters of a table's line or cell; csv's own limit of 131,072 is less than a long text
_BINARY = (
    ".xlsx .xls .ods .feather .arrow .orc .avro .pkl .pickle .npy .npz .pt .db .sqlite .zip .tar .pdf .docx .bz2 .xz"
).split()
_MOST_DIGITS = 300
_MAX_FILE_BYTES = 256 * 2**20  # of formats that are read at once, all but JSON Lines and Parquet
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Entry:
    """One object of a file."""

    value: dict[str, Any]
    number: int  # line, or position in the list, from 1
    where: str  # file and line, for messages
    groups: dict[str, str] = field(default_factory=dict)  # fields to group by, from the file's name
    num_canvas: int | None = None  # positions of the canvas, from the file's name
    num_steps: int | None = None  # denoising steps, from the file's name


def read_entries(path: Path, encoding: str | None, texts: Collection[str] = ()) -> Iterator[Entry]:
    """All objects of a file. Raises UserError that names the line of anything else.

    texts: columns of a table whose empty cells are empty texts; other empty cells are left out.
    """
    name = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
    suffix = name.suffix.lower()
    if suffix in _BINARY:
        raise UserError(
            f"{path}: {name.suffix} files are not read; save the generations as JSON Lines, CSV, TSV or Parquet"
        )
    if path.suffix.lower() == ".parquet":
        yield from _of_parquet(path)
        return
    if suffix in (".jsonl", ".ndjson"):
        yield from _of_lines(lines_in(path, encoding, _MAX_FILE_BYTES), path, name.stem)
        return
    text = text_in(path, encoding, _MAX_FILE_BYTES)
    if suffix == ".json":
        yield from _of_json(text, path, name.stem)
    elif suffix in _SEPARATORS:
        yield from _of_table(text, path, _SEPARATORS[suffix], texts)
    elif text:
        yield Entry({"text": text}, 1, str(path), {"kind": name.suffix.lstrip(".") or "text"})


def brief(value: Any) -> str:
    """A value as JSON for a message, at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _of_lines(lines: Iterable[str], path: Path, stem: str) -> Iterator[Entry]:
    from_name = _LM_EVAL.fullmatch(stem)
    groups = {"task": from_name["task"]} if from_name else {}
    first_filter = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        entry = _entry(_json(line, f"{path}, line {number}"), number, f"{path}, line {number}", groups)
        if from_name and "filter" in entry.value:  # lm-eval writes a generation again for each of its filters
            first_filter = first_filter or entry.value["filter"]
            if entry.value["filter"] != first_filter:
                continue
        yield entry


def _of_json(text: str, path: Path, stem: str) -> Iterator[Entry]:
    if not text.strip():
        return
    tree = _json(text, str(path))
    values = tree.get("generations") if isinstance(tree, dict) else tree
    if not isinstance(values, list):
        seen = ", ".join(tree) if isinstance(tree, dict) else type(tree).__name__
        raise UserError(f"{path}: neither a list of generations nor an object with one under 'generations'; has {seen}")
    from_name = _D1.fullmatch(stem)
    groups = {name: from_name[name] for name in ("task", "model", "length")} if from_name else {}
    sizes = (int(from_name["length"]), int(from_name["steps"])) if from_name else (None, None)
    for number, value in enumerate(values, start=1):
        yield _entry(value, number, f"{path}, generation {number}", groups, *sizes)


def _of_table(text: str, path: Path, separator: str, texts: Collection[str]) -> Iterator[Entry]:
    """One entry per row under the header; all values are strings."""
    csv.field_size_limit(_MAX_LINE)
    rows = csv.reader(_table_lines(text, path), delimiter=separator, strict=True)
    try:
        header = next(rows, [])
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise UserError(f"{path}: two columns are named {twice!r}; rename one")
        for number, row in enumerate(rows, start=1):
            where = f"{path}, line {rows.line_num}"
            if row and len(row) != len(header):
                raise UserError(f"{where}: {len(row)} cells, but the header has {len(header)} columns")
            if row:
                cells = zip(header, row, strict=True)
                yield Entry({name: cell for name, cell in cells if cell or name in texts}, number, where)
    except csv.Error as error:
        raise UserError(
            f"{path}, line {rows.line_num}: not a table with {separator!r} between cells ({error})"
        ) from error


def _table_lines(text: str, path: Path) -> Iterator[str]:
    """The lines of a table with their ends, each of at most _MAX_LINE characters."""
    stream = io.StringIO(text, newline="")
    number = 0
    while line := stream.readline(_MAX_LINE + 1):
        number += 1
        if len(line) > _MAX_LINE:
            raise UserError(f"{path}, line {number}: longer than the limit of {_MAX_LINE >> 20} Mi characters")
        yield line


def _of_parquet(path: Path) -> Iterator[Entry]:
    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                value = {name: cell for name, cell in row.items() if cell is not None}
                yield Entry(value, number, f"{path}, row {number}")
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error


def _entry(value: Any, number: int, where: str, groups: dict[str, str], *sizes: int | None) -> Entry:
    if not isinstance(value, dict):
        raise UserError(f"{where}: not an object but {brief(value)}")
    return Entry(value, number, where, groups, *sizes)


def _json(text: str, where: str) -> Any:
    tree = parse_json(text, where, object, parse_int=_int)
    return _without_halves(tree) if _HALF.search(text) else tree


def _without_halves(tree: Any) -> Any:
    """Replaces unpaired surrogates, which JSON allows but UTF-8 does not, by U+FFFD."""
    match tree:
        case str():
            return re.sub("[\ud800-\udfff]", "\ufffd", tree)
        case list():
            return [_without_halves(item) for item in tree]
        case dict():
            return {_without_halves(key): _without_halves(value) for key, value in tree.items()}
    return tree


class Digits(str):
    """An integer with more digits than Python converts, as text."""


def _int(digits: str) -> int | Digits:
    return int(digits) if len(digits) <= _MOST_DIGITS else Digits(digits)

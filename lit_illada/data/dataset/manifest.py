"""The manifest of a prepared data set: its shards, its tokenizer and its preparation settings.

manifest.json is written last and atomically, so a folder with a manifest is a finished data set. A manifest is
untrusted input: names must be plain names inside the data set, so that they can neither leave its folder or a cache nor
have a meaning in a shell.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from lit_illada.data.config import SOURCES, TOKENIZERS, DataConfig, StdlibSource
from lit_illada.data.sections import SECTION_SETTINGS
from lit_illada.errors import UserError
from lit_illada.runtime.files import ContentError, MissingFileError, parse_json, read_bytes
from lit_illada.runtime.records import from_record
from lit_illada.schema import choice_name

FORMAT = 1
MANIFEST_FILE = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
TRAIN, VALIDATION = "train", "validation"
DTYPES = {"uint16": 2**16, "uint32": 2**32}  # of token arrays, with the number of ids of each
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ShardRecord:
    """One shard of a data set. Raises UserError for a name that is not plain, a negative count or a malformed hash."""

    file: str
    """A plain name inside the data set."""
    documents: int
    tokens: int
    text_bytes: int
    """UTF-8 bytes of the documents."""
    file_bytes: int
    """Size of the tar."""
    sha256: str
    """Of the tar, hexadecimal."""

    def __post_init__(self) -> None:
        require_plain_name(self.file, "a shard's file")
        for name in ("documents", "tokens", "text_bytes", "file_bytes"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} of {self.file} is {getattr(self, name)}; it cannot be negative")
        _require_sha256(self.sha256, f"sha256 of {self.file}")


def require_plain_name(name: str, what: str) -> None:
    """Raises UserError for a name with characters other than letters, digits and `._-`, such as `/` or a space."""
    if not _PLAIN_NAME.fullmatch(name):
        shown = repr(name[:60])
        raise UserError(
            f"{what} is {shown}, which is not a plain name inside the data set (letters, digits, '.', '_', '-')"
        )


def _require_sha256(value: str, what: str) -> None:
    if not _SHA256.fullmatch(value):
        raise UserError(f"{what} is {value[:70]!r}; expected 64 hexadecimal digits")


@dataclass(frozen=True)
class Split:
    """The shards of `train` or `validation`, in the order of the corpus."""

    shards: list[ShardRecord]

    @property
    def documents(self) -> int:
        """Documents of all shards."""
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Tokens of all shards, EOS included."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return sum(shard.text_bytes for shard in self.shards)

    def to_tree(self) -> dict[str, Any]:
        """The split as in manifest.json, with its totals."""
        totals = {"documents": self.documents, "tokens": self.tokens, "text_bytes": self.text_bytes}
        return {**totals, "shards": [asdict(shard) for shard in self.shards]}


@dataclass(frozen=True)
class Manifest:
    """A finished data set. Raises UserError for impossible values, such as a shard name with a folder."""

    dtype: str
    """Type of the token arrays: uint16 or uint32."""
    vocab_size: int
    tokenizer_sha256: str
    train: Split
    validation: Split
    duplicates: int
    """Documents removed because an earlier one is equal."""
    empty: int
    """Documents removed because they have no text."""
    bad_documents: int
    """Documents removed because they could not be read."""
    bad_examples: list[str]
    """Errors of the first unreadable documents. Not part of the fingerprint."""
    settings: dict[str, Any]
    """Preparation settings by dotted name, such as `source.paths`."""
    tokenizer_folder: str = TOKENIZER_FOLDER
    """A plain name inside the data set; missing in older manifests."""

    def split(self, name: str) -> Split:
        """The split `train` or `validation`."""
        assert name in (TRAIN, VALIDATION), name
        return self.train if name == TRAIN else self.validation

    @property
    def fingerprint(self) -> str:
        """Hash of the tokenizer and all shards: data sets with equal fingerprints are equal."""
        hashes = [shard.sha256 for split in (self.train, self.validation) for shard in split.shards]
        return hashlib.sha256(" ".join([self.tokenizer_sha256, *hashes]).encode()).hexdigest()

    def to_json(self) -> str:
        """The content of manifest.json."""
        splits = {TRAIN: self.train.to_tree(), VALIDATION: self.validation.to_tree()}
        tree = {"format": FORMAT, **{f.name: getattr(self, f.name) for f in fields(self)}, **splits}
        return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"

    def __post_init__(self) -> None:
        require_plain_name(self.tokenizer_folder, "tokenizer_folder")
        _require_sha256(self.tokenizer_sha256, "tokenizer_sha256")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype is {self.dtype[:60]!r}; expected {' or '.join(DTYPES)}")
        if not 1 <= self.vocab_size <= DTYPES[self.dtype]:
            raise UserError(f"vocab_size is {self.vocab_size}; {self.dtype} allows 1 to {DTYPES[self.dtype]}")
        files = [shard.file for split in (self.train, self.validation) for shard in split.shards]
        if len(set(files)) < len(files):
            twice = next(file for index, file in enumerate(files) if file in files[:index])
            raise UserError(f"the shard {twice} is listed twice")

    @classmethod
    def of_folder(cls, folder: Path) -> Self | None:
        """The manifest of a prepared data set; None where there is none. Raises UserError for invalid content."""
        file = folder / MANIFEST_FILE
        return cls.from_json(read_bytes(file), str(file)) if file.is_file() else None

    @classmethod
    def from_json(cls, content: str | bytes, origin: str) -> Self:
        """Parses a manifest. origin: its file or URL, for messages. Raises UserError for invalid content."""
        try:
            tree = parse_json(content, origin)
            if tree.get("format", FORMAT) != FORMAT:
                seen = str(tree["format"])[:60]
                raise UserError(f"{origin} has format {seen}; this version reads format {FORMAT}: prepare it again")
            return from_record(cls, tree, origin)
        except ContentError as error:
            reason = str(error).removeprefix(f"{origin}: ")
            raise UserError(f"{origin} is not a manifest ({reason}): prepare the data set again") from error


def preparation_settings(config: DataConfig) -> dict[str, Any]:
    """The settings that determine the content of a data set, by dotted name, as JSON values."""
    source = asdict(config.source)
    if isinstance(config.source, StdlibSource):
        source |= SECTION_SETTINGS  # not part of the config, but they determine the documents
    return {
        "source": choice_name(SOURCES, config.source),
        **{f"source.{key}": value for key, value in source.items()},
        "tokenizer": choice_name(TOKENIZERS, config.tokenizer),
        **{f"tokenizer.{key}": value for key, value in asdict(config.tokenizer).items()},
        "validation_fraction": config.validation_fraction,
        "shard_tokens": config.shard_tokens,
        "on_bad_document": config.on_bad_document.value,
    }


def require_same_settings(folder: str | Path, seen: dict[str, Any], requested: dict[str, Any]) -> None:
    """Raises UserError with all settings of a finished data set (`seen`) that differ from the requested ones."""
    names = [name for name in {**seen, **requested} if seen.get(name) != requested.get(name)]
    if names:
        if all(name.removeprefix("source.") in SECTION_SETTINGS for name in names):
            raise UserError(
                f"{folder} was cut into documents by another version: prepare it again "
                "(lit-illada data prepare --overwrite) or choose another data.dir"
            )
        differing = "; ".join(f"data.{name}: {seen.get(name)!r} there, {requested.get(name)!r} here" for name in names)
        raise UserError(
            f"{folder} contains a data set with other settings ({differing}): choose another data.dir, "
            "or replace it (lit-illada data prepare --overwrite)"
        )


def require_dataset(location: str) -> None:
    """Raise MissingFileError if the location is a folder without a prepared data set."""
    if not is_url(location) and not Path(location, MANIFEST_FILE).is_file():
        raise MissingFileError(f"no prepared data set at {location}: make it with `lit-illada data prepare`")


def is_url(location: str) -> bool:
    """Whether a location is a URL for webdataset, such as `https://...` or `pipe:cat ...`, and not a path."""
    return location.startswith("pipe:") or "://" in location

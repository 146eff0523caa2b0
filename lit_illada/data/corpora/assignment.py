"""Assignment of documents to splits and shards, and removal of duplicates.

The assignment depends only on a document's content and its position in the corpus, and is made before tokenising.
"""

import hashlib
import sqlite3
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from lit_illada.data.config import DataConfig
from lit_illada.data.corpora.sources import Document, read
from lit_illada.data.corpora.tally import Tally
from lit_illada.data.dataset.manifest import TRAIN, VALIDATION

T = TypeVar("T")

ShardKey = tuple[str, int]
"""The split of a shard and its index in the split."""

_CHARACTERS_PER_TOKEN = 3.5


@dataclass(frozen=True)
class Group:
    """Documents that become one shard."""

    split: str
    index: int  # of the shard in its split
    texts: list[str]
    digests: list[bytes]  # content hash of each document


class Assignment:
    """Assigns documents, given in the order of the corpus, to shards; a context manager."""

    num_groups: dict[str, int]
    """Groups of each split that have a document so far."""

    def __init__(self, config: DataConfig, seen_file: Path, tally: Tally) -> None:
        """seen_file: database of the content hashes seen so far; an existing one is replaced."""
        self._full = int(config.shard_tokens * _CHARACTERS_PER_TOKEN)
        self._validation_fraction = config.validation_fraction
        self._tally = tally
        self._seen = _SeenDigests(seen_file)
        self._characters = {TRAIN: 0, VALIDATION: 0}
        self.num_groups = {TRAIN: 0, VALIDATION: 0}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._seen.close()

    def assign(self, digest: bytes, characters: int) -> ShardKey | None:
        """The shard of the next document; None for a duplicate."""
        if not self._seen.add(digest):
            self._tally.duplicates += 1
            return None
        split = split_of(digest, self._validation_fraction)
        self._tally.documents[split] += 1
        if self._characters[split] == 0:
            self.num_groups[split] += 1
        self._characters[split] += characters
        if self._characters[split] >= self._full:
            self._characters[split] = 0
        return split, self.num_groups[split] - 1


def group_documents(config: DataConfig, seen_file: Path, tally: Tally) -> Generator[Group, None, None]:
    """The corpus without duplicates, in groups of about one shard per split."""

    def assigned() -> Iterator[tuple[ShardKey, tuple[str, bytes]]]:
        with Assignment(config, seen_file, tally) as assignment:
            for document, raw in documents(config, tally):
                digest = digest_of(raw)
                if key := assignment.assign(digest, len(document.text)):
                    yield key, (document.text, digest)

    for (split, index), members in gather(assigned()):
        yield Group(split, index, [text for text, _ in members], [digest for _, digest in members])


def gather(assigned: Iterable[tuple[ShardKey, T]]) -> Iterator[tuple[ShardKey, list[T]]]:
    """The members of each shard, given in increasing order of the shards within a split."""
    groups: dict[str, tuple[int, list[T]]] = {}
    for (split, index), member in assigned:
        if split in groups and groups[split][0] != index:
            yield (split, groups[split][0]), groups.pop(split)[1]
        groups.setdefault(split, (index, []))[1].append(member)
    for split in (TRAIN, VALIDATION):
        if split in groups:
            yield (split, groups[split][0]), groups[split][1]


def documents(config: DataConfig, tally: Tally, files: list[Path] | None = None) -> Iterator[tuple[Document, bytes]]:
    """The documents with text, and their UTF-8 bytes. files: the files of the source to read; None: all."""
    for document in read(config.source, tally.on_bad, files):
        if document.text.isspace() or not document.text:
            tally.empty += 1
        else:
            yield document, document.text.encode()


def digest_of(raw: bytes) -> bytes:
    """The content hash of a document, 16 bytes."""
    return hashlib.blake2b(raw, digest_size=16).digest()


def split_of(digest: bytes, validation_fraction: float) -> str:
    """The split of a document; it depends only on the content hash, not on other documents."""
    is_validation = int.from_bytes(digest[:8], "big") < validation_fraction * 2**64
    return VALIDATION if is_validation else TRAIN


class _SeenDigests:
    """The content hashes seen so far, on disk, so that memory does not grow with the corpus."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)
        # Rebuilt from the source after a kill, so it needs no journal, no sync and only one transaction.
        for statement in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-32768"):
            self._database.execute(f"PRAGMA {statement}")
        self._database.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def add(self, digest: bytes) -> bool:
        """Whether the hash is new."""
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1

    def close(self) -> None:
        self._database.close()

"""Which documents of a corpus are kept, and which of them share a shard?

Everything is decided by a document's content and its place in the corpus, before any tokenising.
"""

import hashlib
import heapq
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

from lit_illada.data.config import DataConfig, OnBadDocument, TextSource
from lit_illada.data.corpora.sources import Document, read
from lit_illada.data.dataset.manifest import TRAIN, VALIDATION
from lit_illada.errors import UserError

T = TypeVar("T")

_CHARACTERS_PER_TOKEN = 3.5
_SCANNED_PER_SAMPLED = 16
_BAD_EXAMPLES = 20


@dataclass
class Tally:
    """How many documents each split got, what was left out, and why."""

    policy: OnBadDocument
    documents: dict[str, int] = field(default_factory=lambda: {TRAIN: 0, VALIDATION: 0})
    duplicates: int = 0
    empty: int = 0
    bad: int = 0
    examples: list[str] = field(default_factory=list)

    def on_bad(self, error: UserError) -> None:
        if self.policy is OnBadDocument.RAISE:
            raise error
        self.bad += 1
        if len(self.examples) < _BAD_EXAMPLES:
            self.examples.append(str(error))

    def add(self, empty: int, bad: int, examples: list[str]) -> None:
        """What somebody else has left out, of documents that follow."""
        self.empty += empty
        self.bad += bad
        self.examples = [*self.examples, *examples][:_BAD_EXAMPLES]

    def empty_split(self, config: DataConfig) -> UserError | None:
        """The error for a corpus that leaves a split without a document; None for one that fills both."""
        num_documents = sum(self.documents.values())
        if not num_documents:
            return self._empty_corpus(config)
        empty = next((split for split in (TRAIN, VALIDATION) if not self.documents[split]), None)
        if empty is None:
            return None
        given = "1 document" if num_documents == 1 else f"{num_documents} documents"
        ways = "give more files, or change data.validation_fraction"
        if isinstance(config.source, TextSource) and config.source.document_separator is None:
            ways = f"set data.source.document_separator (without it a file is one document), {ways}"
        return UserError(
            f"the corpus has {given} and the {empty} split got none of them "
            f"(data.validation_fraction={config.validation_fraction}): {ways}"
        )

    def _empty_corpus(self, config: DataConfig) -> UserError:
        left_out = f"{self.empty} empty, {self.bad} unreadable documents left out"
        first = f"; the first: {self.examples[0]}" if self.examples else ""
        paths = getattr(config.source, "paths", [])
        named = f" of {', '.join(paths[:3])}{', …' if len(paths) > 3 else ''}" if paths else ""
        return UserError(f"the corpus{named} has no text ({left_out}{first})")


@dataclass(frozen=True)
class Group:
    """Documents that become one shard."""

    split: str
    index: int
    texts: list[str]
    digests: list[bytes]


class Assignment:
    """Whether a document is kept, and in which group of which split, told of one after the other; a context manager."""

    def __init__(self, config: DataConfig, seen_file: Path, tally: Tally) -> None:
        """seen_file: where the hashes of the documents are kept meanwhile."""
        self._full = int(config.shard_tokens * _CHARACTERS_PER_TOKEN)
        self._validation_fraction = config.validation_fraction
        self._tally = tally
        self._seen = _Seen(seen_file)
        self._characters = {TRAIN: 0, VALIDATION: 0}
        self.begun = {TRAIN: 0, VALIDATION: 0}
        """Groups of a split that have a document."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._seen.close()

    def place(self, digest: bytes, characters: int) -> tuple[str, int] | None:
        """The document's split and its group in it; None for a duplicate."""
        if not self._seen.add(digest):
            self._tally.duplicates += 1
            return None
        split = split_of(digest, self._validation_fraction)
        self._tally.documents[split] += 1
        if self._characters[split] == 0:
            self.begun[split] += 1
        self._characters[split] += characters
        if self._characters[split] >= self._full:
            self._characters[split] = 0
        return split, self.begun[split] - 1


def group_documents(config: DataConfig, seen_file: Path, tally: Tally) -> Generator[Group, None, None]:
    """The corpus without duplicates, cut into groups of about a shard for each split."""

    def kept() -> Iterator[tuple[tuple[str, int], tuple[str, bytes]]]:
        with Assignment(config, seen_file, tally) as assignment:
            for document, raw in documents(config, tally):
                digest = digest_of(raw)
                if place := assignment.place(digest, len(document.text)):
                    yield place, (document.text, digest)

    for (split, index), members in gather(kept()):
        yield Group(split, index, [text for text, _ in members], [digest for _, digest in members])


def gather(placed: Iterable[tuple[tuple[str, int], T]]) -> Iterator[tuple[tuple[str, int], list[T]]]:
    """The members of each group; of each split, the groups come one after the other."""
    groups: dict[str, tuple[int, list[T]]] = {}
    for (split, index), member in placed:
        if split in groups and groups[split][0] != index:
            yield (split, groups[split][0]), groups.pop(split)[1]
        groups.setdefault(split, (index, []))[1].append(member)
    for split in (TRAIN, VALIDATION):
        if split in groups:
            yield (split, groups[split][0]), groups[split][1]


def split_of(digest: bytes, validation_fraction: float) -> str:
    """The split of a document by the hash of its content alone: it never changes, whatever else the corpus holds."""
    is_validation = int.from_bytes(digest[:8], "big") < validation_fraction * 2**64
    return VALIDATION if is_validation else TRAIN


def sample_documents(config: DataConfig, sample_bytes: int, on_scanned: Callable[[int], None]) -> list[str]:
    """Documents of the training split with the smallest content hashes: a random, repeatable sample.

    on_scanned: is told the bytes of text read so far.
    """
    kept: dict[bytes, str] = {}
    held_out: set[bytes] = set()
    largest_first: list[tuple[int, bytes]] = []
    kept_bytes = scanned_bytes = 0
    tally = Tally(config.on_bad_document)
    for document, raw in documents(config, tally):
        digest = digest_of(raw)
        scanned_bytes += len(raw)
        if scanned_bytes > _SCANNED_PER_SAMPLED * sample_bytes and kept:
            break
        if digest in kept:
            continue
        if split_of(digest, config.validation_fraction) == VALIDATION:
            held_out.add(digest)
            continue
        # the split takes the first bytes of the hash, the sample the last
        heapq.heappush(largest_first, (-int.from_bytes(digest[8:], "big"), digest))
        kept[digest] = document.text
        kept_bytes += len(raw)
        while kept_bytes > sample_bytes and len(kept) > 1:
            kept_bytes -= len(kept.pop(heapq.heappop(largest_first)[1]).encode())
        on_scanned(scanned_bytes)
    if not kept:
        tally.documents[VALIDATION] = len(held_out)
        error = tally.empty_split(config)
        assert error is not None
        raise error
    return list(kept.values())


class _Seen:
    """The content hashes met so far, on disk: memory does not grow with the corpus."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)
        # Lost with the process, and then rebuilt from the source: so no journal, no sync, one transaction.
        for statement in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-32768"):
            self._database.execute(f"PRAGMA {statement}")
        self._database.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def add(self, digest: bytes) -> bool:
        """Whether it is new."""
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1

    def close(self) -> None:
        self._database.close()


def documents(config: DataConfig, tally: Tally, files: list[Path] | None = None) -> Iterator[tuple[Document, bytes]]:
    """The documents that have text, and their UTF-8 bytes. files: of these files of the source; None: of all."""
    for document in read(config.source, tally.on_bad, files):
        if document.text.isspace() or not document.text:
            tally.empty += 1
        else:
            yield document, document.text.encode()


def digest_of(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=16).digest()

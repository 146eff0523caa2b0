"""Reading of a prepared data set from a folder or a URL; every shard is checked before its tokens are used."""

import hashlib
import io
import logging
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_illada.data.dataset.fetching import NotFoundError, fetch
from lit_illada.data.dataset.manifest import MANIFEST_FILE, Manifest, ShardRecord, is_url, require_dataset
from lit_illada.data.dataset.shards import LENGTHS_MEMBER, TOKENS_MEMBER, write_whole
from lit_illada.data.tokenizer import CONFIG_FILE, TOKENIZER_FILE, Tokenizer
from lit_illada.errors import UserError
from lit_illada.runtime.files import MAX_FILE_BYTES, FileError, MissingFileError, decode_utf8, open_regular

log = logging.getLogger(__name__)
_NPY_PREFIX = 10  # bytes before the header: magic, version, length of the header
_PREPARE_AGAIN = "prepare it again (lit-illada data prepare --overwrite)"


class BadShardError(UserError):
    """A shard is missing, truncated or altered, although its folder or server is reachable."""


@dataclass(frozen=True)
class Shard:
    """The content of a shard: D documents with N tokens in total."""

    tokens: NDArray[np.unsignedinteger]
    """(N,) uint16 or uint32, the concatenated documents."""
    lengths: NDArray[np.int64]
    """(D,), tokens of each document; sums to N."""


@dataclass(frozen=True)
class Dataset:
    """A prepared data set."""

    location: str
    """Folder or URL prefix."""
    manifest: Manifest
    cache_dir: str | None = None
    """Folder that caches shards from a URL; None: no cache."""
    attempts: int = 3
    """Attempts per URL."""

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the data set. Raises UserError if it is not the one that made the shards."""
        folder = f"{self.location}/{self.manifest.tokenizer_folder}"
        tokenizer_json, settings = (
            _fetch_text(f"{folder}/{name}", self.attempts) for name in (TOKENIZER_FILE, CONFIG_FILE)
        )
        tokenizer = Tokenizer.from_files(tokenizer_json, settings, folder)
        if tokenizer.sha256 != self.manifest.tokenizer_sha256:
            raise UserError(
                f"the tokenizer at {folder} does not fit the shards (sha256 {tokenizer.sha256[:12]}, in the manifest "
                f"{self.manifest.tokenizer_sha256[:12]}): {_restore(self.location)}"
            )
        if tokenizer.vocab_size != self.manifest.vocab_size:
            raise UserError(
                f"{self.location}/{MANIFEST_FILE}: vocab_size is {self.manifest.vocab_size}, its tokenizer "
                f"has {tokenizer.vocab_size}: {_PREPARE_AGAIN}"
            )
        return tokenizer

    def load(self, record: ShardRecord) -> Shard:
        """Reads a shard. Raises BadShardError, with the fix, if it is missing, truncated or altered."""
        url = f"{self.location}/{record.file}"
        return _parse(self._content(url, record), url, record, self.manifest)

    def _content(self, url: str, record: ShardRecord) -> bytes:
        if not is_url(self.location):
            content = _fetch(url, 1, record.file_bytes)
            _require_whole(content, url, record)
            return content
        if self.cache_dir is None:
            return self._fetch_whole(url, record)
        cached = Path(self.cache_dir, self.manifest.fingerprint[:12], record.file)
        # a damaged cache file is fetched again
        if cached.is_file() and _is_whole(content := _fetch(str(cached), 1, record.file_bytes), record):
            return content
        content = self._fetch_whole(url, record)
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_whole(cached, content)
        except OSError as error:
            raise UserError(f"cannot write {url} to data.cache_dir={self.cache_dir}: {error.strerror}") from error
        return content

    def _fetch_whole(self, url: str, record: ShardRecord) -> bytes:
        """The content of a URL, fetched a second time if it arrives damaged, as the network may have caused it."""
        content = _fetch(url, self.attempts, record.file_bytes)
        if not _is_whole(content, record) and self.attempts > 1:
            log.warning("%s arrived damaged (%d of %d bytes); fetching it again", url, len(content), record.file_bytes)
            content = _fetch(url, self.attempts, record.file_bytes)
        _require_whole(content, url, record)
        return content


def open_dataset(location: str | Path, cache_dir: str | None = None, attempts: int = 3) -> Dataset:
    """Opens the data set at a folder or URL prefix, with the fields of Dataset. Raises UserError if there is none."""
    location = str(location).rstrip("/")
    url = f"{location}/{MANIFEST_FILE}"
    require_dataset(location)
    return Dataset(location, Manifest.from_json(_fetch_text(url, attempts), url), cache_dir, attempts)


def _fetch_text(url: str, attempts: int) -> str:
    content = _fetch(url, attempts, MAX_FILE_BYTES)
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"{url}: larger than the limit of {MAX_FILE_BYTES >> 20} MiB")
    return decode_utf8(content, url)


def _fetch(url: str, attempts: int, max_bytes: int) -> bytes:
    """The content of a URL or file, at most its first `max_bytes` + 1 bytes."""
    try:
        if is_url(url):
            return fetch(url, attempts, max_bytes)
        with open_regular(Path(url)) as stream:
            return stream.read(max_bytes + 1)
    except (MissingFileError, NotFoundError) as error:
        raise BadShardError(f"{url} is missing: {_restore(url)}") from error
    except FileError:
        raise
    except OSError as error:
        raise UserError(f"{url} could not be read ({error.strerror}): check the file and the disk") from error


def _is_whole(content: bytes, record: ShardRecord) -> bool:
    return len(content) == record.file_bytes and hashlib.sha256(content).hexdigest() == record.sha256


def _require_whole(content: bytes, url: str, record: ShardRecord) -> None:
    if len(content) != record.file_bytes:
        what = "truncated" if len(content) < record.file_bytes else "too long"
        seen = f"{len(content)} of" if what == "truncated" else "more than"
        raise BadShardError(f"{url} is {what}: {seen} {record.file_bytes} bytes; {_restore(url)}")
    if not _is_whole(content, record):
        raise BadShardError(f"{url} was altered: its sha256 is not the manifest's; {_restore(url)}")


def _restore(url: str) -> str:
    return f"{'upload' if is_url(url) else 'copy or download'} it again, or {_PREPARE_AGAIN}"


def _parse(content: bytes, url: str, record: ShardRecord, manifest: Manifest) -> Shard:
    tokens, lengths = [], []
    try:
        for sample in _samples(content):
            tokens.append(_array(sample[TOKENS_MEMBER], TOKENS_MEMBER))
            lengths.append(_array(sample[LENGTHS_MEMBER], LENGTHS_MEMBER))
        shard = Shard(np.concatenate(tokens), np.concatenate(lengths).astype(np.int64))
    except KeyError as error:
        raise BadShardError(f"{url}: a sample has no member {error}: {_PREPARE_AGAIN}") from error
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise BadShardError(f"{url} is not a readable shard ({reason}): {_PREPARE_AGAIN}") from error
    counts = len(shard.lengths), len(shard.tokens), int(shard.lengths.sum()), shard.tokens.dtype.name
    if counts != (record.documents, record.tokens, record.tokens, manifest.dtype):
        raise BadShardError(
            f"{url} contains {counts[0]} documents, {counts[1]} tokens of {counts[3]}; the manifest says "
            f"{record.documents}, {record.tokens} of {manifest.dtype}: {_PREPARE_AGAIN}"
        )
    if not shard.lengths.all():
        raise BadShardError(f"{url} contains a document without tokens: {_PREPARE_AGAIN}")
    if len(shard.tokens) and (largest := int(shard.tokens.max())) >= manifest.vocab_size:
        raise BadShardError(
            f"{url} contains the id {largest}, outside the vocabulary of {manifest.vocab_size}: {_PREPARE_AGAIN}"
        )
    return shard


def _samples(content: bytes) -> list[dict[str, memoryview]]:
    """The members of each sample of a tar, in the order of the file. A sample's key is the name up to the first dot.

    Reads only the subset that `shards.write_shard` writes: plain files in an uncompressed tar. tarfile itself follows
    extended headers, sparse members and negative sizes, so that a small file could take any amount of memory or time.
    """
    samples: dict[str, dict[str, memoryview]] = {}
    view = memoryview(content)
    offset = 0
    while any(header := content[offset : offset + tarfile.BLOCKSIZE]):
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        begin = offset + tarfile.BLOCKSIZE
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise tarfile.TarError(f"{member.name!r} is not a plain file")
        if not 0 <= member.size <= len(content) - begin:
            raise tarfile.TarError(f"{member.name!r} is truncated")
        key, _, name = member.name.partition(".")
        if name in samples.setdefault(key, {}):
            raise tarfile.TarError(f"{member.name!r} occurs twice")
        samples[key][name] = view[begin : begin + member.size]
        offset = begin + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return list(samples.values())


def _array(content: memoryview, name: str) -> NDArray[np.unsignedinteger]:
    """The (N,) unsigned integers of a .npy file; its header is checked before memory is allocated."""
    begin = _NPY_PREFIX + int.from_bytes(content[_NPY_PREFIX - 2 : _NPY_PREFIX], "little")
    shape, dtype = _npy_header(bytes(content[:begin]))
    if len(shape) != 1 or dtype.str not in ("<u2", "<u4"):
        raise ValueError(f"{name}: shape {shape} of {dtype}, not one dimension of uint16 or uint32")
    if shape[0] * dtype.itemsize != len(content) - begin:
        raise ValueError(f"{name}: {len(content) - begin} bytes, not the {shape[0]} values of its header")
    return np.frombuffer(content, dtype, offset=begin)


@lru_cache(256)  # most bundles of a data set have the same header of lengths
def _npy_header(content: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of a .npy file, by its first bytes. Raises ValueError for another format."""
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not version 1.0 of the npy format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return shape, dtype

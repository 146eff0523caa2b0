"""How is a prepared data set read back, from a folder or a URL, with every shard proved whole?"""

import hashlib
import io
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from webdataset.tariterators import group_by_keys, tar_file_expander

from lit_illada.data.fetching import NotFoundError, fetch
from lit_illada.data.manifest import MANIFEST_FILE, Manifest, ShardRecord, is_url
from lit_illada.data.shards import LENGTHS_MEMBER, TOKENS_MEMBER, write_whole
from lit_illada.data.tokenizer import CONFIG_FILE, TOKENIZER_FILE, Tokenizer
from lit_illada.errors import UserError

log = logging.getLogger(__name__)
_PREPARE_AGAIN = "prepare it again (lit-illada data prepare --overwrite)"


class BadShardError(UserError):
    """A shard that is missing, truncated or altered, where its folder or server answers."""


@dataclass(frozen=True)
class Shard:
    """tokens: (N,) uint16 or uint32, the documents one after the other. lengths: (D,) int64, sums to N."""

    tokens: NDArray[np.unsignedinteger]
    lengths: NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """A prepared data set at a folder or URL prefix; cache_dir keeps what comes from a URL, tried `attempts` times."""

    location: str
    manifest: Manifest
    cache_dir: str | None = None
    attempts: int = 3

    def tokenizer(self) -> Tokenizer:
        """The data set's own. Raises UserError when it is not the one that made the shards."""
        folder = f"{self.location}/{self.manifest.tokenizer_folder}"
        tokenizer_json, settings = (
            _fetch(f"{folder}/{name}", self.attempts).decode() for name in (TOKENIZER_FILE, CONFIG_FILE)
        )
        tokenizer = Tokenizer.from_files(tokenizer_json, settings, folder)
        if tokenizer.sha256 != self.manifest.tokenizer_sha256:
            raise UserError(
                f"the tokenizer at {folder} does not fit the shards (sha256 {tokenizer.sha256[:12]}, the manifest says "
                f"{self.manifest.tokenizer_sha256[:12]}): {_restore(self.location)}"
            )
        return tokenizer

    def load(self, record: ShardRecord) -> Shard:
        """A shard's tokens. Raises BadShardError, which says what to do, when it is missing, truncated or altered."""
        url = f"{self.location}/{record.file}"
        return _parse(self._content(url, record), url, record, self.manifest.dtype)

    def _content(self, url: str, record: ShardRecord) -> bytes:
        if not is_url(self.location):
            content = _fetch(url, attempts=1)
            _require_whole(content, url, record)
            return content
        if self.cache_dir is None:
            return self._fetch_whole(url, record)
        cached = Path(self.cache_dir, self.manifest.fingerprint[:12], record.file)
        if cached.is_file() and _is_whole(content := cached.read_bytes(), record):
            return content
        content = self._fetch_whole(url, record)
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_whole(cached, content)
        except OSError as error:
            raise UserError(f"cannot keep {url} in data.cache_dir={self.cache_dir}: {error.strerror}") from error
        return content

    def _fetch_whole(self, url: str, record: ShardRecord) -> bytes:
        """Fetched once more where the way may have spoilt it: what is wrong twice is wrong at its source."""
        content = _fetch(url, self.attempts)
        if not _is_whole(content, record) and self.attempts > 1:
            log.warning("%s came spoilt (%d of %d bytes); once more", url, len(content), record.file_bytes)
            content = _fetch(url, self.attempts)
        _require_whole(content, url, record)
        return content


def open_dataset(location: str | Path, cache_dir: str | None = None, attempts: int = 3) -> Dataset:
    """The data set at a folder or URL prefix. Raises UserError where there is none."""
    location = str(location).rstrip("/")
    url = f"{location}/{MANIFEST_FILE}"
    if not is_url(location) and not Path(url).is_file():
        raise UserError(f"no prepared data set at {location}: make it with `lit-illada data prepare`")
    return Dataset(location, Manifest.from_json(_fetch(url, attempts).decode(), url), cache_dir, attempts)


def _fetch(url: str, attempts: int) -> bytes:
    try:
        return fetch(url, attempts) if is_url(url) else Path(url).read_bytes()
    except (FileNotFoundError, NotFoundError) as error:
        raise BadShardError(f"{url} is missing: {_restore(url)}") from error
    except OSError as error:
        raise UserError(f"{url} could not be read ({error.strerror}): check the file and the disk") from error


def _is_whole(content: bytes, record: ShardRecord) -> bool:
    return len(content) == record.file_bytes and hashlib.sha256(content).hexdigest() == record.sha256


def _require_whole(content: bytes, url: str, record: ShardRecord) -> None:
    if len(content) != record.file_bytes:
        what = "truncated" if len(content) < record.file_bytes else "too long"
        raise BadShardError(f"{url} is {what}: {len(content)} of {record.file_bytes} bytes; {_restore(url)}")
    if not _is_whole(content, record):
        raise BadShardError(f"{url} was altered: its sha256 is not the manifest's; {_restore(url)}")


def _restore(url: str) -> str:
    return f"{'upload' if is_url(url) else 'copy or download'} it again, or {_PREPARE_AGAIN}"


def _parse(content: bytes, url: str, record: ShardRecord, dtype: str) -> Shard:
    source: Iterator[dict[str, Any]] = iter([{"url": url, "stream": io.BytesIO(content)}])
    tokens, lengths = [], []
    try:
        for sample in group_by_keys(tar_file_expander(source)):
            tokens.append(_array(sample[TOKENS_MEMBER]))
            lengths.append(_array(sample[LENGTHS_MEMBER]))
        shard = Shard(np.concatenate(tokens), np.concatenate(lengths).astype(np.int64))
    except KeyError as error:
        raise BadShardError(f"{url} lacks the member {error} of a sample: {_PREPARE_AGAIN}") from error
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise BadShardError(f"{url} is no readable shard ({error}): {_PREPARE_AGAIN}") from error
    counts = len(shard.lengths), len(shard.tokens), int(shard.lengths.sum()), shard.tokens.dtype.name
    if counts != (record.documents, record.tokens, record.tokens, dtype):
        raise BadShardError(
            f"{url} holds {counts[0]} documents, {counts[1]} tokens of {counts[3]}; the manifest says "
            f"{record.documents}, {record.tokens} of {dtype}: {_PREPARE_AGAIN}"
        )
    return shard


def _array(content: bytes) -> NDArray[Any]:
    return np.load(io.BytesIO(content), allow_pickle=False)

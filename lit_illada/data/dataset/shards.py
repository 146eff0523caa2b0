"""Format and writing of shards.

A shard is a WebDataset tar. A sample is a bundle of documents: `<key>.tokens.npy` contains their concatenated ids, each
document ended by EOS, and `<key>.lengths.npy` their lengths in tokens. Equal documents give equal bytes.
"""

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lit_illada.data.dataset.manifest import ShardRecord
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.runtime.files import temporary_of

TOKENS_MEMBER, LENGTHS_MEMBER = "tokens.npy", "lengths.npy"
BUNDLE_DOCUMENTS = 256  # documents per sample
_BATCH_CHARACTERS = 2**18  # encoded together; the library's encodings take 100 times the memory of the ids
_PIECE_CHARACTERS = 2**20  # longer documents are encoded in pieces


@dataclass(frozen=True)
class ShardJob:
    """Documents to write as one shard."""

    file: Path
    """The shard."""
    record_file: Path
    """Its record, written after the shard."""
    texts: list[str]


def write_shard(job: ShardJob, tokenizer: Tokenizer) -> ShardRecord:
    """Tokenises the documents, then writes the shard and its record, each atomically."""
    documents = tokenise(job.texts, tokenizer)
    content = _tar(job.file.stem, documents)
    record = ShardRecord(
        file=job.file.name,
        documents=len(documents),
        tokens=sum(map(len, documents)),
        text_bytes=sum(len(text.encode()) for text in job.texts),
        file_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    write_whole(job.file, content)
    write_whole(job.record_file, json.dumps(asdict(record)).encode())
    return record


def tokenise(texts: Sequence[str], tokenizer: Tokenizer) -> list[NDArray[np.unsignedinteger]]:
    """The ids of each text, with EOS at the end."""
    dtype = token_dtype(tokenizer.vocab_size)
    documents = []
    for batch in _batches(texts):
        pieces = [list(_pieces(text)) for text in batch]
        encoded = iter(tokenizer.encode_batch([piece for parts in pieces for piece in parts]))
        for parts in pieces:
            arrays = [np.array(next(encoded), dtype) for _ in parts]
            documents.append(np.concatenate([*arrays, np.array([tokenizer.eos_token_id], dtype)]))
    return documents


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest unsigned type for all ids: uint16 or uint32."""
    # explicitly little-endian, so that the bytes are the same on every machine
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _pieces(text: str) -> Iterator[str]:
    """Splits a long text, at line ends where possible, to bound the encoder's memory."""
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        newline = text.rfind("\n", start, start + _PIECE_CHARACTERS)
        end = start + _PIECE_CHARACTERS if newline < 0 else newline + 1
        yield text[start:end]
        start = end
    yield text[start:]


def _tar(stem: str, documents: list[NDArray[np.unsignedinteger]]) -> bytes:
    buffer = io.BytesIO()
    # same bytes as webdataset.TarWriter(mtime=0, encoder=False), which would import torch in every process
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for first in range(0, len(documents), BUNDLE_DOCUMENTS):
            bundle = documents[first : first + BUNDLE_DOCUMENTS]
            lengths = np.array([len(document) for document in bundle], "<u4")
            members = {LENGTHS_MEMBER: lengths, TOKENS_MEMBER: np.concatenate(bundle)}
            for member, array in members.items():
                _add(tar, f"{stem}-{first // BUNDLE_DOCUMENTS:06d}.{member}", array)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, array: NDArray[np.unsignedinteger]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    info = tarfile.TarInfo(name)
    info.size = buffer.tell()
    info.mode = 0o444
    buffer.seek(0)
    tar.addfile(info, buffer)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file atomically, also if several processes write it at the same time."""
    temporary = temporary_of(path)
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)

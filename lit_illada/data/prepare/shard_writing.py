"""Writes the shards of document groups and reuses those of a killed preparation."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

from lit_illada.data.config import DataConfig
from lit_illada.data.corpora.assignment import Group, ShardKey
from lit_illada.data.dataset.manifest import FORMAT, TOKENIZER_FOLDER, ShardRecord
from lit_illada.data.dataset.shards import ShardJob
from lit_illada.data.prepare.shard_pool import ShardPool
from lit_illada.data.prepare.work_folder import WORK_FOLDER
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.runtime.cores import usable_cores
from lit_illada.runtime.files import read_json
from lit_illada.runtime.records import from_record


def write_shards(
    groups: Iterable[Group],
    tokenizer: Tokenizer,
    folder: Path,
    config: DataConfig,
    on_bytes: Callable[[int], None] = lambda done: None,
) -> dict[ShardKey, ShardRecord]:
    """The records of the groups' shards; finished shards of a killed preparation are not written again.

    on_bytes: called with the bytes of text in shards so far.
    """
    records: dict[ShardKey, ShardRecord] = {}
    pending: dict[Future[ShardRecord], ShardKey] = {}
    done_bytes = 0

    def add(key: ShardKey, record: ShardRecord) -> None:
        nonlocal done_bytes
        records[key] = record
        done_bytes += record.text_bytes
        on_bytes(done_bytes)

    def collect(futures: set[Future[ShardRecord]]) -> None:
        for future in futures:
            add(pending.pop(future), future.result())

    with ShardPool(folder / WORK_FOLDER / TOKENIZER_FOLDER, config.num_processes or len(usable_cores())) as pool:
        for group in groups:
            key = group.split, group.index
            job = ShardJob(*shard_files(folder, key, tokenizer, group.digests), group.texts)
            if record := finished_shard(job.file, job.record_file):
                add(key, record)
                continue
            pending[pool.submit(job)] = key
            while len(pending) > 2 * pool.num_processes:  # bounds the texts in memory
                collect(wait(pending, return_when=FIRST_COMPLETED).done)
        collect(wait(pending).done)
    return records


def shard_files(folder: Path, key: ShardKey, tokenizer: Tokenizer, digests: Sequence[bytes]) -> tuple[Path, Path]:
    """The files of a shard and of its record, named by everything that determines the shard's bytes."""
    content = b"".join([f"{FORMAT} {tokenizer.sha256}".encode(), *digests])
    name = f"{key[0]}-{key[1]:06d}-{hashlib.blake2b(content, digest_size=6).hexdigest()}"
    return folder / f"{name}.tar", folder / WORK_FOLDER / f"{name}.json"


def finished_shard(file: Path, record_file: Path) -> ShardRecord | None:
    """The record of a shard that was written completely; None for any other."""
    if not record_file.is_file() or not file.is_file():
        return None
    record = from_record(ShardRecord, read_json(record_file), str(record_file))
    return record if file.stat().st_size == record.file_bytes else None

"""How does text become a finished data set on disk?

Two passes over the source: a bounded sample trains the tokenizer; then every document is de-duplicated, put in its
split by a hash of its content, and tokenised in groups by parallel processes. A group's shard is named by its content
and tokenizer, so a preparation that was killed reads again but finds its finished shards, and a finished data set stays
whole until the manifest of its successor replaces its own.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lit_illada.data.config import DataConfig, LoadTokenizer, TrainTokenizer
from lit_illada.data.corpora.grouping import Group, Tally, group_documents, sample_documents
from lit_illada.data.corpora.sources import total_bytes
from lit_illada.data.dataset.manifest import (
    FORMAT,
    MANIFEST_FILE,
    TOKENIZER_FOLDER,
    TRAIN,
    VALIDATION,
    Manifest,
    ShardRecord,
    Split,
    is_url,
    preparation_settings,
    require_same_settings,
)
from lit_illada.data.dataset.shards import ShardJob, token_dtype
from lit_illada.data.prepare.shard_pool import ShardPool
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.runtime.files import read_bytes, read_json, write_atomically
from lit_illada.runtime.records import from_record

OnProgress = Callable[[str, int, int | None], None]  # stage, bytes of text done, all bytes where known

WORK_FOLDER = ".preparing"
SETTINGS_FILE = "settings.json"
_log = logging.getLogger(__name__)


def prepare(
    config: DataConfig, *, overwrite: bool = False, on_progress: OnProgress = lambda stage, done, total: None
) -> Manifest:
    """Prepare `config.dir` from `config.source`, or find it prepared already with the same settings.

    overwrite: replace a finished data set, which is left alone otherwise. Raises UserError for a bad source, other
    settings, a split without documents, or a full disk; running it again after a kill goes on.
    """
    if is_url(config.dir):
        raise UserError(f"data.dir is {config.dir}: a data set is prepared in a local folder, then copied")
    folder = Path(config.dir)
    with explained(folder):
        if not overwrite and (manifest := finished(config)):
            return manifest
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if not overwrite and (manifest := finished(config)):
                return manifest
            return _prepare(config, folder, on_progress)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """What the disk refuses is the user's to mend: as UserError."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if explanation := _explanation(error, folder):
            raise UserError(explanation) from error
        raise


def finished(config: DataConfig) -> Manifest | None:
    """The data set of the config, if it is prepared. Raises UserError if it was with other settings."""
    folder = Path(config.dir)
    file = folder / MANIFEST_FILE
    if not file.is_file():
        return None
    manifest = Manifest.from_json(read_bytes(file), str(file))
    require_same_settings(folder, manifest.settings, preparation_settings(config))
    return manifest


def _prepare(config: DataConfig, folder: Path, on_progress: OnProgress) -> Manifest:
    total = total_bytes(config.source)
    work = work_folder(folder, preparation_settings(config))
    tokenizer = prepared_tokenizer(config, work, total, on_progress)
    tally = Tally(config.on_bad_document)
    with closing(group_documents(config, work / "seen.sqlite", tally)) as groups:
        records = write_shards(groups, tokenizer, folder, config, lambda done: on_progress("tokenising", done, total))
    if error := tally.empty_split(config):
        shutil.rmtree(work)  # with more files the tokenizer is another one
        raise error
    return finish(folder, tokenizer, manifest_of(config, tokenizer, records, tally))


def write_shards(
    groups: Iterable[Group],
    tokenizer: Tokenizer,
    folder: Path,
    config: DataConfig,
    on_bytes: Callable[[int], None] = lambda done: None,
) -> dict[tuple[str, int], ShardRecord]:
    """The shards of the groups, by their splits and numbers; those that a killed preparation has finished stay.

    on_bytes: is told how many bytes of text are in shards so far.
    """
    records: dict[tuple[str, int], ShardRecord] = {}
    pending: dict[Future[ShardRecord], tuple[str, int]] = {}
    done_bytes = 0

    def keep(place: tuple[str, int], record: ShardRecord) -> None:
        nonlocal done_bytes
        records[place] = record
        done_bytes += record.text_bytes
        on_bytes(done_bytes)

    def collect(futures: set[Future[ShardRecord]]) -> None:
        for future in futures:
            keep(pending.pop(future), future.result())

    with ShardPool(folder / WORK_FOLDER / TOKENIZER_FOLDER, config.num_processes or _num_cores()) as pool:
        for group in groups:
            place = group.split, group.index
            job = ShardJob(*shard_files(folder, place, tokenizer, group.digests), group.texts)
            if record := finished_shard(job.file, job.record_file):
                keep(place, record)
                continue
            pending[pool.submit(job)] = place
            while len(pending) > 2 * pool.num_processes:
                collect(wait(pending, return_when=FIRST_COMPLETED).done)
        collect(wait(pending).done)
    return records


def shard_files(
    folder: Path, place: tuple[str, int], tokenizer: Tokenizer, digests: Sequence[bytes]
) -> tuple[Path, Path]:
    """Where a group's shard goes, and meanwhile its record: named by all that decides its bytes."""
    content = b"".join([f"{FORMAT} {tokenizer.sha256}".encode(), *digests])
    name = f"{place[0]}-{place[1]:06d}-{hashlib.blake2b(content, digest_size=6).hexdigest()}"
    return folder / f"{name}.tar", folder / WORK_FOLDER / f"{name}.json"


def finished_shard(file: Path, record_file: Path) -> ShardRecord | None:
    if not record_file.is_file() or not file.is_file():
        return None
    record = from_record(ShardRecord, read_json(record_file), str(record_file))
    return record if file.stat().st_size == record.file_bytes else None


def manifest_of(
    config: DataConfig, tokenizer: Tokenizer, records: Mapping[tuple[str, int], ShardRecord], tally: Tally
) -> Manifest:
    splits = {
        split: Split([records[key] for key in sorted(records) if key[0] == split]) for split in (TRAIN, VALIDATION)
    }
    return Manifest(
        dtype=token_dtype(tokenizer.vocab_size).name,
        vocab_size=tokenizer.vocab_size,
        tokenizer_sha256=tokenizer.sha256,
        train=splits[TRAIN],
        validation=splits[VALIDATION],
        duplicates=tally.duplicates,
        empty=tally.empty,
        bad_documents=tally.bad,
        bad_examples=tally.examples,
        settings=preparation_settings(config),
    )


def prepared_tokenizer(config: DataConfig, work: Path, total: int | None, on_progress: OnProgress) -> Tokenizer:
    """Loaded or trained as the config says, and kept in the work folder."""
    folder = work / TOKENIZER_FOLDER
    if folder.is_dir():  # of the preparation that was killed, with the same settings
        return Tokenizer.load(folder)
    match config.tokenizer:
        case LoadTokenizer(path, token_names):
            tokenizer = Tokenizer.load(path, token_names)
        case TrainTokenizer(vocab_size, sample_bytes):
            sample = sample_documents(config, sample_bytes, lambda done: on_progress("sampling", done, total))
            on_progress("training the tokenizer", 0, None)
            tokenizer = Tokenizer.train(sample, vocab_size)
            if tokenizer.vocab_size < vocab_size:
                _log.warning("the text gives a vocabulary of %d, not %d", tokenizer.vocab_size, vocab_size)
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    tokenizer.save(temporary)
    temporary.replace(folder)
    return tokenizer


def work_folder(folder: Path, settings: dict[str, Any]) -> Path:
    """Where an unfinished preparation keeps its state; emptied when the last one had other settings."""
    work = folder / WORK_FOLDER
    settings_file = work / SETTINGS_FILE
    wanted = json.dumps([FORMAT, settings])
    if work.is_dir() and not (settings_file.is_file() and read_bytes(settings_file) == wanted.encode()):
        shutil.rmtree(work)
    work.mkdir(exist_ok=True)
    write_atomically(settings_file, wanted)
    for leftover in [*folder.rglob("*.tmp"), *work.glob("*.tmp")]:
        if leftover.is_file():
            leftover.unlink(missing_ok=True)
    return work


def finish(folder: Path, tokenizer: Tokenizer, manifest: Manifest) -> Manifest:
    """Make the shards a data set, and remove what is none of it."""
    manifest = replace(manifest, tokenizer_folder=_free_tokenizer_folder(folder, tokenizer))
    tokenizer.save(folder / manifest.tokenizer_folder)
    write_atomically(folder / MANIFEST_FILE, manifest.to_json())
    shards = {shard.file for split in (manifest.train, manifest.validation) for shard in split.shards}
    for split in (TRAIN, VALIDATION):
        for path in folder.glob(f"{split}-*.tar"):
            if path.name not in shards:  # of an earlier data set, or of a preparation whose corpus changed since
                path.unlink()
    for path in [folder / TOKENIZER_FOLDER, *folder.glob(f"{TOKENIZER_FOLDER}-*")]:
        if path.name != manifest.tokenizer_folder:
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(folder / WORK_FOLDER)
    return manifest


def _free_tokenizer_folder(folder: Path, tokenizer: Tokenizer) -> str:
    """Its usual name, unless the data set that is to be replaced has another tokenizer there: until the manifest is
    exchanged that one stays whole."""
    file = folder / MANIFEST_FILE
    if file.is_file():
        old = Manifest.from_json(read_bytes(file), str(file))
        if old.tokenizer_folder == TOKENIZER_FOLDER and old.tokenizer_sha256 != tokenizer.sha256:
            return f"{TOKENIZER_FOLDER}-{tokenizer.sha256[:12]}"
    return TOKENIZER_FOLDER


def locked(folder: Path) -> FileLock:
    """Preparations of one folder take turns; the second then finds the first one's work."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
        lock.release()
    except Timeout:
        _log.warning("waiting for another preparation of %s to end", folder)
    return lock


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _explanation(error: OSError | sqlite3.OperationalError, folder: Path) -> str | None:
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or (number is None and "full" in str(error)):
        return f"the disk of {folder} is full: free some space and run it again; it goes on where it stopped"
    if number in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return f"cannot write to {getattr(error, 'filename', None) or folder}: {os.strerror(number)}"
    return None

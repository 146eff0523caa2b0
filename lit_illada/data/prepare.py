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
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lit_illada.data.config import DataConfig, LoadTokenizer, TrainTokenizer
from lit_illada.data.corpora import total_bytes
from lit_illada.data.grouping import Group, Tally, group_documents, sample_documents
from lit_illada.data.manifest import (
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
from lit_illada.data.shard_pool import ShardPool
from lit_illada.data.shards import ShardJob, token_dtype
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.files import write_atomically

OnProgress = Callable[[str, int, int | None], None]  # stage, bytes of text done, all bytes where known

WORK_FOLDER = ".preparing"
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
    try:
        if not overwrite and (manifest := _prepared(config, folder)):
            return manifest
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if not overwrite and (manifest := _prepared(config, folder)):
                return manifest
            return _prepare(config, folder, on_progress)
    except (OSError, sqlite3.OperationalError) as error:
        if explanation := _explanation(error, folder):
            raise UserError(explanation) from error
        raise


def _prepared(config: DataConfig, folder: Path) -> Manifest | None:
    file = folder / MANIFEST_FILE
    if not file.is_file():
        return None
    manifest = Manifest.from_json(file.read_text("utf-8"), str(file))
    require_same_settings(folder, manifest.settings, preparation_settings(config))
    return manifest


def _prepare(config: DataConfig, folder: Path, on_progress: OnProgress) -> Manifest:
    settings = preparation_settings(config)
    total = total_bytes(config.source)
    work = _work_folder(folder, settings)
    tokenizer = _tokenizer(config, work, total, on_progress)
    tally = Tally(config.on_bad_document)
    records: dict[tuple[str, int], ShardRecord] = {}
    pending: dict[Future[ShardRecord], tuple[str, int]] = {}
    done_bytes = 0

    def keep(place: tuple[str, int], record: ShardRecord) -> None:
        nonlocal done_bytes
        records[place] = record
        done_bytes += record.text_bytes
        on_progress("tokenising", done_bytes, total)

    def collect(futures: set[Future[ShardRecord]]) -> None:
        for future in futures:
            keep(pending.pop(future), future.result())

    with ShardPool(work / TOKENIZER_FOLDER, config.num_processes or _num_cores()) as pool:
        for group in group_documents(config, work / "seen.sqlite", tally):
            place = group.split, group.index
            job = _job(group, tokenizer, folder, work)
            if record := _finished(job):
                keep(place, record)
                continue
            pending[pool.submit(job)] = place
            while len(pending) > 2 * pool.num_processes:
                collect(wait(pending, return_when=FIRST_COMPLETED).done)
        collect(wait(pending).done)

    if error := tally.empty_split(config):
        shutil.rmtree(work)  # with more files the tokenizer is another one
        raise error
    splits = {
        split: Split([records[key] for key in sorted(records) if key[0] == split]) for split in (TRAIN, VALIDATION)
    }
    manifest = Manifest(
        dtype=token_dtype(tokenizer.vocab_size).name,
        vocab_size=tokenizer.vocab_size,
        tokenizer_sha256=tokenizer.sha256,
        train=splits[TRAIN],
        validation=splits[VALIDATION],
        duplicates=tally.duplicates,
        empty=tally.empty,
        bad_documents=tally.bad,
        bad_examples=tally.examples,
        settings=settings,
    )
    _finish(folder, work, tokenizer, manifest)
    return manifest


def _job(group: Group, tokenizer: Tokenizer, folder: Path, work: Path) -> ShardJob:
    content = b"".join([f"{FORMAT} {tokenizer.sha256}".encode(), *group.digests])
    name = f"{group.split}-{group.index:06d}-{hashlib.blake2b(content, digest_size=6).hexdigest()}"
    return ShardJob(folder / f"{name}.tar", work / f"{name}.json", group.texts)


def _finished(job: ShardJob) -> ShardRecord | None:
    if not job.record_file.is_file() or not job.file.is_file():
        return None
    record = ShardRecord.from_tree(json.loads(job.record_file.read_text("utf-8")))
    return record if job.file.stat().st_size == record.file_bytes else None


def _tokenizer(config: DataConfig, work: Path, total: int | None, on_progress: OnProgress) -> Tokenizer:
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


def _work_folder(folder: Path, settings: dict[str, Any]) -> Path:
    """Where an unfinished preparation keeps its state; emptied when the last one had other settings."""
    work = folder / WORK_FOLDER
    settings_file = work / "settings.json"
    wanted = json.dumps([FORMAT, settings])
    if work.is_dir() and not (settings_file.is_file() and settings_file.read_text("utf-8") == wanted):
        shutil.rmtree(work)
    work.mkdir(exist_ok=True)
    write_atomically(settings_file, wanted)
    for leftover in [*folder.glob("*.tmp"), *work.glob("*.tmp")]:
        if leftover.is_file():
            leftover.unlink(missing_ok=True)
    return work


def _finish(folder: Path, work: Path, tokenizer: Tokenizer, manifest: Manifest) -> None:
    tokenizer.save(folder / TOKENIZER_FOLDER)
    write_atomically(folder / MANIFEST_FILE, manifest.to_json())
    shards = {shard.file for split in (manifest.train, manifest.validation) for shard in split.shards}
    for split in (TRAIN, VALIDATION):
        for path in folder.glob(f"{split}-*.tar"):
            if path.name not in shards:  # of an earlier data set, or of a preparation whose corpus changed since
                path.unlink()
    shutil.rmtree(work)


def _locked(folder: Path) -> FileLock:
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

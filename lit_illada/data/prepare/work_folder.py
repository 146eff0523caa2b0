"""The folder of a preparation: its lock, the state of unfinished work, and the switch to the finished data set."""

import errno
import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lit_illada.data.config import DataConfig
from lit_illada.data.corpora.assignment import ShardKey
from lit_illada.data.corpora.tally import Tally
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
from lit_illada.data.dataset.shards import token_dtype
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.runtime.files import read_bytes, write_atomically

WORK_FOLDER = ".preparing"
SETTINGS_FILE = "settings.json"
_log = logging.getLogger(__name__)


def local_folder(config: DataConfig) -> Path:
    """The folder of the data set. Raises UserError for a URL."""
    if is_url(config.dir):
        raise UserError(f"data.dir is {config.dir}: prepare a data set in a local folder, then copy it")
    return Path(config.dir)


def finished_manifest(config: DataConfig) -> Manifest | None:
    """The manifest of the prepared data set; None where there is none. Raises UserError if its settings differ."""
    folder = Path(config.dir)
    manifest = Manifest.of_folder(folder)
    if manifest is not None:
        require_same_settings(folder, manifest.settings, preparation_settings(config))
    return manifest


def lock(folder: Path) -> FileLock:
    """The lock of a folder, as a context manager: of two preparations, the second waits and reuses the result."""
    file_lock = FileLock(folder / ".lock")
    try:
        file_lock.acquire(timeout=0)
        file_lock.release()
    except Timeout:
        _log.warning("waiting for another preparation of %s to end", folder)
    return file_lock


def make_work_folder(folder: Path, config: DataConfig) -> Path:
    """The folder for the state of unfinished work; emptied if that had other settings."""
    work = folder / WORK_FOLDER
    settings_file = work / SETTINGS_FILE
    content = json.dumps([FORMAT, preparation_settings(config)])
    if work.is_dir() and not (settings_file.is_file() and read_bytes(settings_file) == content.encode()):
        shutil.rmtree(work)
    work.mkdir(exist_ok=True)
    write_atomically(settings_file, content)
    for leftover in [*folder.rglob("*.tmp"), *work.glob("*.tmp")]:
        if leftover.is_file():
            leftover.unlink(missing_ok=True)
    return work


def finish(
    folder: Path, config: DataConfig, tokenizer: Tokenizer, records: Mapping[ShardKey, ShardRecord], tally: Tally
) -> Manifest:
    """Writes tokenizer and manifest, then removes everything that is not part of the data set."""
    train, validation = (
        Split([records[key] for key in sorted(records) if key[0] == split]) for split in (TRAIN, VALIDATION)
    )
    manifest = Manifest(
        dtype=token_dtype(tokenizer.vocab_size).name,
        vocab_size=tokenizer.vocab_size,
        tokenizer_sha256=tokenizer.sha256,
        train=train,
        validation=validation,
        duplicates=tally.duplicates,
        empty=tally.empty,
        bad_documents=tally.bad,
        bad_examples=tally.examples,
        settings=preparation_settings(config),
        tokenizer_folder=_free_tokenizer_folder(folder, tokenizer),
    )
    tokenizer.save(folder / manifest.tokenizer_folder)
    # from the next line on, the folder is the new data set; the rest only removes files
    write_atomically(folder / MANIFEST_FILE, manifest.to_json())
    shards = {shard.file for split in (manifest.train, manifest.validation) for shard in split.shards}
    for split in (TRAIN, VALIDATION):
        for path in folder.glob(f"{split}-*.tar"):
            if path.name not in shards:  # of an earlier data set, or of a preparation whose corpus has changed since
                path.unlink()
    for path in [folder / TOKENIZER_FOLDER, *folder.glob(f"{TOKENIZER_FOLDER}-*")]:
        if path.name != manifest.tokenizer_folder:
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(folder / WORK_FOLDER)
    return manifest


@contextmanager
def disk_errors_explained(folder: Path) -> Iterator[None]:
    """Raises disk errors that the user can fix as UserError."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if explanation := _explanation(error, folder):
            raise UserError(explanation) from error
        raise


def _free_tokenizer_folder(folder: Path, tokenizer: Tokenizer) -> str:
    """The usual name, unless a data set that is being replaced has another tokenizer there: it must stay complete
    until the manifest is replaced."""
    old = Manifest.of_folder(folder)
    if old is not None and old.tokenizer_folder == TOKENIZER_FOLDER and old.tokenizer_sha256 != tokenizer.sha256:
        return f"{TOKENIZER_FOLDER}-{tokenizer.sha256[:12]}"
    return TOKENIZER_FOLDER


def _explanation(error: OSError | sqlite3.OperationalError, folder: Path) -> str | None:
    number = getattr(error, "errno", None)
    is_full = isinstance(error, sqlite3.OperationalError) and "full" in str(error)
    if number in (errno.ENOSPC, errno.EDQUOT) or is_full:
        return f"the disk of {folder} is full: free some space and run it again; it resumes where it stopped"
    if number in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return f"cannot write to {getattr(error, 'filename', None) or folder}: {os.strerror(number)}"
    return None

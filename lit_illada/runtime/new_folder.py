"""Creates a folder of files that appears whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lit_illada.errors import UserError


def require_new(destination: Path) -> None:
    """Raise UserError unless the destination is absent or an empty folder."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination} already exists: name a new folder")


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """Yield a temporary folder beside the destination; rename it to the destination when the block succeeds.

    Raises UserError if another process is writing the destination or the disk is full.
    """
    partial = destination.with_name(f".{destination.name}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with _locked(destination):
            require_new(destination)  # another process may have created it since the first check
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                yield partial
                if destination.is_dir():
                    destination.rmdir()
                partial.replace(destination)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except UserError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"{destination}: cannot be written ({os.strerror(error.errno)}): free some space and run the command again"
        ) from error


@contextmanager
def _locked(destination: Path) -> Iterator[None]:
    """Lock the destination. Raises UserError if another process is writing it."""
    lock = FileLock(destination.with_name(f".{destination.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"{destination} is being written by another process: wait for it, or name another folder"
        ) from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # before releasing it, while no other process can hold it
        lock.release()

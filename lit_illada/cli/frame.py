"""Shared parts of the commands: the overrides argument and the handling of user errors."""

import errno
import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import click

from lit_illada.cli import completion
from lit_illada.errors import InterruptedByUserError, UserError
from lit_illada.runtime import ranks
from lit_illada.runtime.terminal import one_line

overrides_argument = click.argument(
    "overrides", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=completion.complete_override
)

_FULL = ": free some space and run it again; resume a training run with --resume"
_NOT_OURS = ": choose a writable folder"
# errors of the file system, with the fix
_FIXES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EACCES: _NOT_OURS,
    errno.EPERM: _NOT_OURS,
    errno.EROFS: _NOT_OURS,
    errno.ENOTDIR: ": a file exists where a folder is needed",
    errno.ENAMETOOLONG: ": choose a shorter name",
}


def file_to_write(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """Option callback that rejects an unwritable output file before the work starts."""
    if path is None:
        return None
    given = f"{option.opts[0]} {path}"
    if path.is_dir():
        raise click.ClickException(f"{given}: this is a folder; name a file in it")
    if not path.parent.is_dir():
        raise click.ClickException(f"{given}: the folder {path.parent} does not exist; create it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise click.ClickException(f"{given}{_NOT_OURS}")
    return path


def refuse_early(command: str, overrides: Sequence[str], checkpoint: Path | None = None) -> None:
    """Raise UserError, before importing torch, for bad overrides or names, a used run_dir, a missing checkpoint or
    a missing data set."""
    from lit_illada.config import check_overrides
    from lit_illada.data.dataset.manifest import require_dataset
    from lit_illada.run_folder import RunFolder, require_name

    has_own_model = command not in ("sft", "align") and not any(
        override.startswith("init_from=") for override in overrides
    )
    tree = check_overrides(command, overrides, is_whole=has_own_model)
    run_dir = tree.get("run_dir")
    if run_dir and ranks.rank() == 0:  # rank 0 may have created the folder for the other ranks already
        RunFolder(Path(run_dir)).require_unused()
    elif not run_dir and "name" in tree:
        require_name(tree["name"])
    if checkpoint is not None and not checkpoint.exists():
        raise UserError(f"{checkpoint}: no such checkpoint")
    if command == "pretrain" and tree["data"]["source"]["name"] == "prepared":
        require_dataset(tree["data"]["dir"])


def refuse_resume_early(command: str, run: Path, overrides: Sequence[str]) -> None:
    """Raise UserError for a folder without a run, and for invalid overrides of its config, before importing torch."""
    from lit_illada.config import load_file
    from lit_illada.run_folder import RunFolder

    load_file(command, RunFolder.open(run).config, overrides)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Decorator that prints user errors as one line; other exceptions are raised with their traceback."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            if click.get_current_context().find_root().params["debug"]:
                raise
            refusal = click.ClickException(one_line(str(error)))
            refusal.exit_code = 130 if isinstance(error, InterruptedByUserError) else 1  # type: ignore[misc]
            raise refusal from error
        except OSError as error:
            is_explained = error.errno in _FIXES or error.filename is not None
            if not is_explained or click.get_current_context().find_root().params["debug"]:
                raise
            where = f"{error.filename}: " if error.filename else ""
            fix = _FIXES.get(error.errno or 0, "")
            raise click.ClickException(one_line(f"{where}{error.strerror}{fix}")) from error

    return wrapped

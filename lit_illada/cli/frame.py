"""What every command shares: how overrides are given, and how a user's mistake ends."""

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

_FULL = ": free some space and run it again; a training run goes on with --resume"
_NOT_OURS = ": choose a folder that can be written to"
# what a disk may refuse, and what helps
_TOLD = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EACCES: _NOT_OURS,
    errno.EPERM: _NOT_OURS,
    errno.EROFS: _NOT_OURS,
    errno.ENOTDIR: ": a file stands where a folder is needed",
}


def file_to_write(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """An option's file; where it cannot be written, that is told before the work and not after it."""
    if path is None:
        return None
    asked = f"{option.opts[0]} {path}"
    if path.is_dir():
        raise click.ClickException(f"{asked}: that is a folder, name a file in it")
    if not path.parent.is_dir():
        raise click.ClickException(f"{asked}: there is no folder {path.parent}, make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise click.ClickException(f"{asked}{_NOT_OURS}")
    return path


def refuse_early(command: str, overrides: Sequence[str]) -> None:
    """Raises UserError for overrides or a run_dir that the command refuses, before torch is imported."""
    from lit_illada.config import check_overrides
    from lit_illada.run_folder import RunFolder

    has_own_model = command != "sft" and not any(override.startswith("init_from=") for override in overrides)
    tree = check_overrides(command, overrides, is_whole=has_own_model)
    run_dir = tree.get("run_dir")
    if run_dir and ranks.rank() == 0:  # other ranks may find the folder that rank 0 has just made
        RunFolder(Path(run_dir)).require_unused()


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A user's mistake ends in one line; a bug keeps its traceback."""

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
            if error.errno not in _TOLD or click.get_current_context().find_root().params["debug"]:
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(one_line(f"{where}{error.strerror}{_TOLD[error.errno]}")) from error

    return wrapped

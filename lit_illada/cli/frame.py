"""What every command shares: how overrides are given, and how a user's mistake ends."""

import errno
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from lit_illada import completion
from lit_illada.errors import UserError

overrides_argument = click.argument(
    "overrides", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=completion.complete_override
)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A user's mistake ends in one line; a bug keeps its traceback."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            if click.get_current_context().find_root().params["debug"]:
                raise
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror}") from error

    return wrapped

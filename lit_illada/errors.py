"""Errors in user input, each one line with the value seen, the values allowed and the nearest match."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the user's input or files. The command line prints its message without a traceback."""


class InterruptedByUserError(UserError):
    """Ctrl-C during work that can be resumed; the message names the command. The exit status is 130."""


def require(is_valid: bool, field: str, seen: object, allowed: str) -> None:
    """Raises UserError unless `is_valid`.

    field: dotted name of the config field. seen: its value. allowed: the valid values in words, such as "above 0".
    """
    if not is_valid:
        raise UserError(f"{field} is {seen}: it must be {allowed}")


def unknown(what: str, seen: object, allowed: Iterable[str]) -> UserError:
    """Builds the error for a name that is not allowed; it lists the allowed names and suggests the nearest."""
    names = sorted(allowed)
    close = difflib.get_close_matches(str(seen), names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return UserError(f"unknown {what} {seen!r}: allowed are {', '.join(names)}{hint}")

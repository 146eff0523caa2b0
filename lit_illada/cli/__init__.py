"""Declarations of the commands. Each imports its implementation when it runs, so that help and completion are fast."""

from lit_illada.cli.root import main

__all__ = ["main"]

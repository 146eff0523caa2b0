"""Prints text from elsewhere (file names, groups, config values, generated text) without its terminal escapes.

All printing goes through this module or through `runtime.console`. A terminal executes escape sequences, which
can rename its window, recolour or erase text and, on some terminals, insert keystrokes.
"""

import logging
import sys
import unicodedata
from typing import TextIO

MAX_MESSAGE = 1200  # characters of an error message
_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, formatting such as reversed writing, surrogates, line separators
_LAYOUT = "\n\t"
_JOINERS = "\u200c\u200d"  # part of Persian and Indic spelling, and of composed emoji


def printable(text: str, keeps_lines: bool = False) -> str:
    """Return the text with control and formatting characters escaped, such as `\\x1b` for ESC.

    keeps_lines: leave line ends, tabs and zero-width joiners, as texts of several lines need them.
    """
    allowed = _LAYOUT + _JOINERS if keeps_lines else ""
    if text.isprintable():
        return text
    return "".join(character if character in allowed else _escaped(character) for character in text)


def is_unsafe(character: str) -> bool:
    """Whether `printable(text, keeps_lines=True)` escapes the character."""
    return unicodedata.category(character) in _UNSAFE and character not in _LAYOUT + _JOINERS


def one_line(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return a message as one printable line of at most `limit` characters; a longer one loses its middle."""
    line = printable(" ".join(text.split()))
    half = limit // 2
    return line if len(line) <= limit else f"{line[:half]} … {line[-half:]}"


def print_lines(text: str, stream: TextIO | None = None) -> None:
    """Print a message of one or more lines with unsafe characters escaped. stream: None is standard output."""
    print(printable(text, keeps_lines=True), file=stream, flush=True)


def print_content(text: str, end: str = "\n") -> None:
    """Print a command's product, such as a generated text or a script, on standard output.

    Unsafe characters are escaped on a terminal only: a file or pipe receives the text unchanged.
    """
    print(printable(text, keeps_lines=True) if sys.stdout.isatty() else text, end=end, flush=True)


class PrintableFormatter(logging.Formatter):
    """Formats log records with unsafe characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keeps_lines=True)


def _escaped(character: str) -> str:
    is_safe = unicodedata.category(character) not in _UNSAFE
    return character if is_safe else character.encode("unicode_escape").decode()

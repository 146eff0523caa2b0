"""Text from elsewhere (file names, groups, values of a config) made safe to print on a terminal."""

import unicodedata

MAX_MESSAGE = 1200  # characters of an error message
_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, formatting such as reversed writing, surrogates, line separators


def printable(text: str) -> str:
    """The text with every control and formatting character as an escape, such as `\\x1b` for the one that colours."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _UNSAFE else character
        for character in text
    )


def one_line(text: str, limit: int = MAX_MESSAGE) -> str:
    """A message on one line: white space as single spaces, controls as escapes, the middle of a long one left out."""
    line = printable(" ".join(text.split()))
    half = limit // 2
    return line if len(line) <= limit else f"{line[:half]} … {line[-half:]}"

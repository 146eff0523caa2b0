"""Makes untrusted text (file names, groups, config values) safe to print on a terminal."""

import unicodedata

MAX_MESSAGE = 1200  # characters of an error message
_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, formatting such as reversed writing, surrogates, line separators


def printable(text: str) -> str:
    """Return the text with control and formatting characters escaped, such as `\\x1b` for ESC."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _UNSAFE else character
        for character in text
    )


def one_line(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return a message as one printable line of at most `limit` characters; a longer one loses its middle."""
    line = printable(" ".join(text.split()))
    half = limit // 2
    return line if len(line) <= limit else f"{line[:half]} … {line[-half:]}"

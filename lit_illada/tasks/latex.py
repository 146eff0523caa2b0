"""Plain comparison of LaTeX answers: equal texts after normalisation, or equal numbers."""

import re
from fractions import Fraction

_REMOVED = re.compile(r"\\(?:left|right|displaystyle|[,!;: $%])|\^\{?\\circ\}?|\\(?:text|mathrm|mbox)\{\s*\}|[$%\s]")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:(?:,|\{,\})\d{3})+(?:\.\d+)?")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}")
_SHORT_FRACTION = re.compile(r"\\frac(?:([0-9a-z])|\{([^{}]*)\})(?:([0-9a-z])|\{([^{}]*)\})")
_UNITS = re.compile(r"(?<=[0-9])\\(?:text|mathrm|mbox)\{[^{}]*\}(?:\^[0-9])?$")
_NUMBER = re.compile(r"([-+]?)(?:\\frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+)|(\d*\.?\d+|\d+\.))")
_MAX_CHARACTERS = 1000
_MAX_DIGITS = 300


def are_equal(answer: str, reference: str) -> bool:
    """Whether two answers are the same text after normalisation, or the same number."""
    if max(len(answer), len(reference)) > _MAX_CHARACTERS:
        return False
    one, other = normalized(answer), normalized(reference)
    if one == other:
        return bool(one)
    number = _number(one)
    return number is not None and number == _number(other)


def normalized(text: str) -> str:
    r"""The text without spaces, delimiters' sizes, units, a variable before an equals sign and a final full stop.

    \dfrac12 becomes \frac{1}{2}; thousands separators are removed; the content of \text{} stays without the command.
    """
    text = re.sub(r"\\[dtc]frac", r"\\frac", text.strip().rstrip("."))
    text = _UNITS.sub("", re.sub(r"\s+(?=\\(?:text|mathrm|mbox)\{)", "", text))
    text = _REMOVED.sub("", _TEXT.sub(r"\1", text))
    if _THOUSANDS.fullmatch(text):
        text = re.sub("[{},]", "", text)
    text = re.sub(r"^[a-zA-Z]=(?!=)", "", text)
    return _SHORT_FRACTION.sub(lambda m: rf"\frac{{{m[1] or m[2] or ''}}}{{{m[3] or m[4] or ''}}}", text)


def _number(text: str) -> Fraction | None:
    match = _NUMBER.fullmatch(text)
    if match is None or len(text) > _MAX_DIGITS:
        return None
    sign, above, below, left, right, decimal = match.groups()
    if decimal is not None:
        value = Fraction(decimal if not decimal.endswith(".") else decimal[:-1])
    else:
        denominator = int(below or right)
        if denominator == 0:
            return None
        value = Fraction(int(above or left), denominator)
    return -value if sign == "-" else value

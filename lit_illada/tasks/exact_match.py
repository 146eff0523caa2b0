"""Is a generated answer the right one? Numbers are compared as numbers, other answers as texts."""

import re
from decimal import Decimal

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+")


def truth_of(text: str) -> str:
    """A truth as it is kept: trimmed, a number without thousands separators and trailing zeros."""
    number = _NUMBER.fullmatch(text.strip())
    return _plain(number[0]) if number else text.strip()


def is_right(truth: str, answer: str) -> bool:
    """Whether the answer gives the truth: a number by its last number, any other text by being that text."""
    if not _NUMBER.fullmatch(truth):
        return answer.strip() == truth
    numbers = _NUMBER.findall(answer)
    return bool(numbers) and _plain(numbers[-1]) == _plain(truth)


def _plain(number: str) -> str:
    return f"{Decimal(number.replace(',', '')).normalize() + 0:f}"

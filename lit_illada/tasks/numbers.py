r"""Which number does a solution give as its answer? Read tolerantly, kept exactly.

Looked for in this order: after the last `####`; in the last `\boxed{}`; after the last "answer is" (or "answer:",
"A:"); else the last number of the text. Where the place holds an equation, its right side counts.

Read: 1,234.50  18.  -5  −5  .5  $5  -$5  $-5  50%  3/4  1 1/2  \frac{3}{4}  \$1{,}000. A percentage is its number; a
currency or a unit is dropped. Not read: number words, exponents, decimal commas, and what is longer than 300 digits: a
flood of them is no number.
"""

import re
from collections import deque
from collections.abc import Iterator
from fractions import Fraction

# a sign counts where it cannot be the minus between two operands: 10-5 holds no −5
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}%.])[-+])?"
    r"(?:[$€£¥₹]\s?(?P<inner_sign>[-+])?)?"
    r"(?P<whole>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
    r"(?P<fraction>(?:\ (?P<above>\d+))?\s?/\s?(?P<below>\d+)(?!\.?\d))?"
)
_ANSWER_MARK = re.compile(
    r"\banswers?\b[^\d\n.]{0,40}?(?:\bis\b|\bare\b|[:=])|^[^\S\n]*A:", re.IGNORECASE | re.MULTILINE
)
_BOX = re.compile(r"\\boxed\s*\{")
_MOST_DIGITS = 300
_MOST_MARKS = 32  # each may announce all that follows, so that a look at every one would be quadratic
_CLAUSE_END = re.compile(r"\n|[.,;!?](?=\s|$)")


def final_number(text: str) -> Fraction | None:
    """The number that the text gives as its answer; None where it holds none."""
    text = _plain(text)
    for clause in _answer_places(text):
        if (number := first_number(clause.rpartition("=")[2])) is not None:
            return number
    numbers = list(_numbers(text))
    return numbers[-1] if numbers else None


def first_number(text: str) -> Fraction | None:
    """The first number of a text."""
    return next(_numbers(text), None)


def _answer_places(text: str) -> Iterator[str]:
    """Where an answer is announced, the surest place first; of marks that a text repeats without end the last ones."""
    for marked in reversed(text.split("####")[1:]):
        yield marked.lstrip().partition("\n")[0]
    if boxes := _last_ends(_BOX, text):
        ends = _brace_ends(text)
        for start in boxes:
            yield text[start : ends.get(start - 1, len(text))]
    for start in _last_ends(_ANSWER_MARK, text):
        after = text[start:].lstrip()
        end = _CLAUSE_END.search(after)
        yield after[: end.start()] if end else after


def _last_ends(mark: re.Pattern[str], text: str) -> list[int]:
    """Where the last marks end, the very last first."""
    return [found.end() for found in deque(mark.finditer(text), _MOST_MARKS)][::-1]


def _brace_ends(text: str) -> dict[int, int]:
    """Where the brace that opens at a place is closed; one that is not has no entry."""
    ends: dict[int, int] = {}
    still_open: list[int] = []
    for brace in re.finditer("[{}]", text):
        if brace[0] == "{":
            still_open.append(brace.start())
        elif still_open:
            ends[still_open.pop()] = brace.start()
    return ends


def _plain(text: str) -> str:
    """Without GSM8K's <<calculations>>, LaTeX's spellings and other signs for a minus or a space."""
    text = re.sub(r"<<[^<>]*>>", "", text)
    text = re.sub("[−﹣－]", "-", text)
    text = re.sub("[\u00a0\u2007\u2009\u202f]", " ", text)
    text = text.replace("{,}", ",").replace(r"\$", "$").replace(r"\%", "%").replace(r"\,", "").replace(r"\!", "")
    text = re.sub(r"(?<=\d)\s*(?=\\[dt]?frac)", " ", text)
    return re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)


def _numbers(text: str) -> Iterator[Fraction]:
    position = 0
    while found := _NUMBER.search(text, position):
        position = found.end("whole")
        if len(found["whole"]) > _MOST_DIGITS:
            continue
        number = Fraction(found["whole"].replace(",", ""))
        if found["fraction"] and len(found["fraction"]) <= _MOST_DIGITS:
            divided = _divided(number, found["above"], int(found["below"]))
            if divided is not None:
                number, position = divided, found.end()
        yield -number if "-" in (found["sign"], found["inner_sign"]) else number


def _divided(whole: Fraction, above: str | None, below: int) -> Fraction | None:
    """whole/below, or the mixed number whole + above/below; None where it is neither."""
    if below == 0:
        return None
    if above is None:
        return whole / below
    return whole + Fraction(int(above), below) if whole.denominator == 1 and int(above) < below else None

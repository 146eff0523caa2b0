r"""Answer parsing: the number or marked text that a completion gives as its answer, and exact match.

`exact_match` compares with a reference of the training data: the last number written in the answer (its sign always
counts, so 10-5 ends with -5), or the whole text where the reference is not a number.

`final_number` looks, in this order, after the last `####` that is not a Markdown heading; in the last `\boxed{}`;
after the last "answer is" (or "answer:", "A:"); else it takes the last number of the text. Of an announced equation,
the right side counts.
It reads 1,234.50  18.  -5  −5  .5  $5  -$5  $-5  50%  3/4  1 1/2  \frac{3}{4}  \$1{,}000. A percentage is read without
its sign; currencies and units are ignored. Number words, exponents, decimal commas and numbers of more than 300 digits
are not read.
"""

import re
from collections import deque
from collections.abc import Iterator
from decimal import Context, Decimal
from fractions import Fraction

# A sign counts only where it cannot be the minus between two operands: 10-5 contains no -5.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}%.])[-+])?"
    r"(?:[$€£¥₹]\s?(?P<inner_sign>[-+])?)?"
    r"(?P<whole>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
    r"(?P<fraction>(?:\ (?P<above>\d+))?\s?/\s?(?P<below>\d+)(?!\.?\d))?"
)
_LITERAL = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+")  # of `exact_match`: no context, no fractions
_ANSWER_MARK = re.compile(
    r"\banswers?\b[^\d\n.]{0,40}?(?:\bis\b|\bare\b|[:=])|^[^\S\n]*A:", re.IGNORECASE | re.MULTILINE
)
# words, or "2. Add up", after ####: a heading of Markdown where text follows below
_HEADING = re.compile(r"[*_`]*(?:\d+[.):]\s+\S|[^\W\d_]{2,})")
_BOX_OPEN = re.compile(r"\\boxed\s*\{")
_CLAUSE_END = re.compile(r"\n|[.,;!?](?=\s|$)")
_MAX_DIGITS = 300  # Python refuses to convert a few thousand digits; degenerate texts contain more
_DECIMALS = Context(prec=_MAX_DIGITS)
_MAX_MARKS = 32  # each mark may be followed by the rest of the text, so examining all of them would be quadratic


def final_number(text: str) -> Fraction | None:
    """The number that the text gives as its answer; None where it has none."""
    text = _without_markup(text)
    for clause in announced_clauses(text):
        if (number := first_number(clause.rpartition("=")[2])) is not None:
            return number
    numbers = list(_numbers(text))
    return numbers[-1] if numbers else None


def first_number(text: str) -> Fraction | None:
    """The first number of a text; None where it has none."""
    return next(_numbers(text), None)


def normalized_reference(text: str) -> str:
    """A reference answer for `exact_match`: stripped; a number also without thousands separators and trailing zeros."""
    number = _LITERAL.fullmatch(text.strip())
    return _normalized(number[0]) if number else text.strip()


def exact_match(answer: str, reference: str) -> bool:
    """Whether the last number of the answer is the reference, or the whole answer where the reference is no number."""
    return exact_answer(answer, reference) == (_normalized(reference) if _LITERAL.fullmatch(reference) else reference)


def exact_answer(answer: str, reference: str) -> str | None:
    """What `exact_match` compares with the reference: the last number, or the whole answer; None: no number."""
    if not _LITERAL.fullmatch(reference):
        return answer.strip()
    numbers = _LITERAL.findall(answer)
    return _normalized(numbers[-1]) if numbers else None


def marked_answer(text: str) -> str | None:
    r"""The content of the last \boxed{}, else of the last <answer> … </answer>; None where there is neither."""
    if (boxed := boxed_answer(text)) is not None:
        return boxed
    before, end, _ = text.rpartition("</answer>")
    opened = before.rfind("<answer>")
    return before[opened + len("<answer>") :].strip() if end and opened >= 0 else None


def boxed_answer(text: str) -> str | None:
    r"""The content of the last \boxed{} that is closed; braces may be nested. None where there is none."""
    boxes = _last_ends(_BOX_OPEN, text)
    ends = _brace_ends(text) if boxes else {}
    return next((text[start : ends[start - 1]].strip() for start in boxes if start - 1 in ends), None)


def announced_clauses(text: str) -> Iterator[str]:
    """The clauses that announce an answer, the most reliable mark first, and of equal marks the last first."""
    has_text_below = False
    for marked in reversed(text.split("####")[1:]):
        clause, _, below = marked.lstrip().partition("\n")
        has_text_below |= bool(below.strip())
        if not (has_text_below and _HEADING.match(clause)):
            yield clause
        has_text_below = True
    if boxes := _last_ends(_BOX_OPEN, text):
        ends = _brace_ends(text)
        for start in boxes:
            yield text[start : ends.get(start - 1, len(text))]
    for start in _last_ends(_ANSWER_MARK, text):
        after = text[start:].lstrip()
        end = _CLAUSE_END.search(after)
        yield after[: end.start()] if end else after


def _last_ends(mark: re.Pattern[str], text: str) -> list[int]:
    """The end positions of the last `_MAX_MARKS` matches, in reverse order."""
    return [match.end() for match in deque(mark.finditer(text), _MAX_MARKS)][::-1]


def _brace_ends(text: str) -> dict[int, int]:
    """The position of the closing brace by that of its opening brace; unclosed braces are missing."""
    ends: dict[int, int] = {}
    unclosed: list[int] = []
    for brace in re.finditer("[{}]", text):
        if brace[0] == "{":
            unclosed.append(brace.start())
        elif unclosed:
            ends[unclosed.pop()] = brace.start()
    return ends


def _without_markup(text: str) -> str:
    """The text without GSM8K's <<calculations>>, LaTeX spellings and typographic variants of minus and space."""
    text = re.sub(r"<<[^<>]*>>", "", text)
    if not text.isascii():
        text = re.sub("[−﹣－]", "-", text)
        text = re.sub("[\u00a0\u2007\u2009\u202f]", " ", text)
    text = text.replace("{,}", ",").replace(r"\$", "$").replace(r"\%", "%").replace(r"\,", "").replace(r"\!", "")
    if "frac" not in text:  # the search for it takes longest
        return text
    text = re.sub(r"(?<=\d)\s*(?=\\[dt]?frac)", " ", text)
    return re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)


def _numbers(text: str) -> Iterator[Fraction]:
    position = 0
    while match := _NUMBER.search(text, position):
        position = match.end("whole")
        if len(match["whole"]) > _MAX_DIGITS:
            continue
        number = Fraction(match["whole"].replace(",", ""))
        if match["fraction"] and len(match["fraction"]) <= _MAX_DIGITS:
            fraction = _fraction(number, match["above"], int(match["below"]))
            if fraction is not None:
                number, position = fraction, match.end()
        yield -number if "-" in (match["sign"], match["inner_sign"]) else number


def _fraction(whole: Fraction, above: str | None, below: int) -> Fraction | None:
    """whole/below, or the mixed number whole + above/below; None where it is neither."""
    if below == 0:
        return None
    if above is None:
        return whole / below
    return whole + Fraction(int(above), below) if whole.denominator == 1 and int(above) < below else None


def _normalized(number: str) -> str:
    plain = number.replace(",", "")
    # plus turns -0 into 0
    return f"{_DECIMALS.plus(_DECIMALS.normalize(Decimal(plain))):f}" if len(plain) <= _MAX_DIGITS else plain

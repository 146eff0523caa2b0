"""The ending of a text: its stop texts, and its answer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from lit_illada.loops.config import EndingRule
from lit_illada.loops.detect.words import Units, Written

_THINK_OPEN = re.compile(r"\s*<\|?think\|?>")
THINK_END = re.compile(r"</think>|<\|/think\|>|</reasoning>")
# GSM8K's mark; before words, or "2. Solve it", it is a heading of Markdown
_MARKED = r"####[^\S\n]*(?!\d+[.):][^\S\n]+\S)[-+−]?(?:[$€£]\s?[-−]?)?\.?\d"
_BEGUN = rf"####\s*\Z|{_MARKED}"
_TAG_END = re.compile(r"</answer>")
_TAG = re.compile(r"</?\w+>")
_MARKED_LINE = re.compile(rf"{_MARKED}[^\n]*")
_BOXED = re.compile(r"\\boxed\s*\{")
# includes marks that only begin or announce an answer
_ANSWER = re.compile(
    rf"<answer>|\\boxed\s*\{{|{_BEGUN}|\banswers?\b[^.\n]{{0,40}}(?:\bis\b|\bare\b|[:=])|(?:</think>|<\|/think\|>)\s*\S",
    re.IGNORECASE,
)
_ANSWER_SECTION = re.compile(
    rf"<+answer>|\\boxed\s*\{{|{_BEGUN}|</think>|<\|/think\|>|</reasoning>|\b(?:final )?answer\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Ending:
    """How a text ends."""

    content: str  # the text before its first stop text
    num_stops: int  # stop texts after the content, including those that fill a canvas
    has_answer: bool
    answer_end: int | None  # character of the content at which the answer ends; None: no answer


def ending(text: str, stop_texts: Sequence[str]) -> Ending:
    """Splits a text at its first stop text and locates its answer."""
    content, num_stops = text, 0
    if stop_texts:
        stop = _stop(tuple(stop_texts))
        if first := stop.search(text):
            content = text[: first.start()]
            num_stops = len(stop.findall(text, first.start()))
    return Ending(content, num_stops, _ANSWER.search(content) is not None, _answer_end(content))


@lru_cache
def _stop(stop_texts: tuple[str, ...]) -> re.Pattern[str]:
    """Matches the longest stop text at a position."""
    return re.compile("|".join(map(re.escape, sorted(stop_texts, key=len, reverse=True))))


def reasoning_segment(text: str) -> str:
    """The text between the marks around the reasoning; to the end of the text if it is not closed."""
    end, begin = THINK_END.search(text), _THINK_OPEN.match(text)
    return text[begin.end() if begin else 0 : end.start() if end else len(text)]


def num_units_after(written: Written, position: int) -> int:
    """Number of units after a position of the text, tags not counted."""
    tags = [(written.unit_at(tag.start()), written.unit_at(tag.end())) for tag in _TAG.finditer(written.text, position)]
    return len(written.starts) - written.unit_at(position) - sum(last - first for first, last in tags)


def is_forced_closure(units: Units, end: Ending, loops_end: int, longest_period: int, rule: EndingRule) -> bool:
    """Whether only an answer section follows the loops, at the end of the canvas.

    loops_end: the unit at which the last loop ends; the length of the text without loops.
    """
    num_closure = rule.closure_blocks * rule.block_length
    if units.written is None or not 0 < len(units) - loops_end <= num_closure or end.num_stops > num_closure:
        return False
    answer = _ANSWER_SECTION.search(units.written.text, int(units.written.ends[loops_end - 1]))
    # an incomplete copy may precede the answer
    return answer is not None and units.written.unit_at(answer.start()) - loops_end < max(8, longest_period)


def _answer_end(content: str) -> int | None:
    """The end of the first tagged answer after the reasoning; else of the last after ####; else of the last box."""
    closings = list(THINK_END.finditer(content))
    start = closings[-1].end() if closings else 0
    if tagged := _TAG_END.search(content, start):
        return tagged.end()
    if marked := list(_MARKED_LINE.finditer(content, start)):
        return marked[-1].end()
    boxes = list(_BOXED.finditer(content, start))
    return _closing_brace(content, boxes[-1].end()) if boxes else None


def _closing_brace(text: str, start: int) -> int:
    depth = 1
    for found in re.compile("[{}]").finditer(text, start):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return found.end()
    return len(text)

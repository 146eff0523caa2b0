"""Streaks of sentences that repeat earlier sentences.

Linear in the text: each sentence is compared with the `lookback` sentences before it, and only if their keys are equal.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.fuzz import ratio

from lit_illada.loops.config import StatementRule
from lit_illada.loops.detect.words import Sentence

# phrases of self-correction, lower case; each starts at a word boundary
PHRASES = (
    r"wait\b",
    r"hmm+\b",
    r"on second thought\b",
    r"let(?:'s|’s| me| us) (?:just )?(?:try|check|verify|re-?\w+|double|start|think|see if|consider|go back)\b",
    r"(?:try|trying|check|checking|verify|compute|calculate|add|subtract|multiply|divide)\w* (?:\w+ ){0,4}again\b",
    r"(?:another|a different|different|other) (?:approach|way|combination|method|order|strategy|possibility)\b",
    r"(?:double|re)-?check",
    r"reconsider",
    r"start(?:ing)? over\b",
    r"(?:that|this|it)(?:'s|’s| is) (?:right|correct|wrong|incorrect|too \w+)\b",
    r"(?:that|this|it|which) (?:is(?: still| also)? not|isn't|does(?:n't| not)|did(?:n't| not))\b",
    r"not (?:close|equal) to\b",
    r"none of (?:these|those|them|the)\b",
    r"(?:i|we) (?:made|have made) (?:a|an) (?:mistake|error)\b",
    r"actually\b",
)
_ANY = re.compile(rf"\b(?:{'|'.join(PHRASES)})")


def holds_phrase(text: str) -> bool:
    """Whether a text contains a phrase of self-correction."""
    return _ANY.search(text.lower()) is not None


def count_phrases(text: str) -> int:
    """Number of phrases of self-correction in a text."""
    return sum(1 for _ in _ANY.finditer(text.lower()))


@dataclass(frozen=True)
class Streak:
    """A stretch of sentences most of which repeat earlier ones. Positions and lengths are in units."""

    start: int  # of the first copy
    onset: int  # of the first repeated sentence
    end: int
    period: int  # median distance from a sentence back to the one it repeats
    cycles: float  # units of the first copies and the revisits, over units of the first copies
    is_self_correction: bool
    originals: list[tuple[int, int]]  # (start, end) of the first copies
    copies: list[tuple[int, int]]  # (start, end) of the revisits


def revisits(sentences: Sequence[Sentence], rule: StatementRule) -> list[int | None]:
    """For each sentence, the index of the nearest earlier sentence that it repeats, or None."""
    before: dict[object, list[int]] = {}
    matches: list[int | None] = []
    for index, sentence in enumerate(sentences):
        earlier = before.setdefault(sentence.key, [])
        del earlier[: max(0, len(earlier) - rule.lookback)]
        matches.append(_nearest(sentences, index, earlier, rule))
        earlier.append(index)
    return matches


def streaks(sentences: Sequence[Sentence], rule: StatementRule) -> list[Streak]:
    """Stretches in which min_revisits of every `window` sentences revisit another, with enough cycles."""
    num_repeated = len(sentences) - len({sentence.key for sentence in sentences})
    if len(sentences) < rule.window or num_repeated < rule.min_revisits:
        return []
    matches = revisits(sentences, rule)
    is_revisit = np.array([item is not None for item in matches], np.int64)
    counts = np.convolve(is_revisit, np.ones(rule.window, np.int64), mode="valid")
    is_inside = np.zeros(len(sentences) + 1, bool)
    for begin in np.flatnonzero(counts >= rule.min_revisits).tolist():
        is_inside[begin : begin + rule.window] = True
    is_inside[:-1] &= ~_in_groups(is_revisit == 0, rule.max_new)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_inside])))
    every = (
        _streak(sentences, matches, first, last, rule)
        for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        if is_revisit[first:last].any()
    )
    return [streak for streak in every if streak.cycles >= rule.min_cycles and len(streak.copies) >= rule.min_revisits]


def _nearest(sentences: Sequence[Sentence], index: int, earlier: list[int], rule: StatementRule) -> int | None:
    text = sentences[index].text
    for other in reversed(earlier):
        if index - other > rule.lookback:
            return None
        if text == sentences[other].text or ratio(text, sentences[other].text, score_cutoff=rule.ratio) >= rule.ratio:
            return other
    return None


def _streak(
    sentences: Sequence[Sentence], matches: list[int | None], first: int, last: int, rule: StatementRule
) -> Streak:
    again = [index for index in range(first, last) if matches[index] is not None]
    origins: dict[int, int] = {}  # the first sentence of each chain of revisits
    for index in again:
        origin = matches[index]
        assert origin is not None
        while origin in origins:
            origin = origins[origin]
        origins[index] = origin
    firsts = sorted(set(origins.values()))
    members = [*firsts, *again]
    distances = [
        sentences[index].start - sentences[earlier].start for index in again if (earlier := matches[index]) is not None
    ]
    fraction = sum(holds_phrase(sentences[index].text) for index in members) / len(members)
    return Streak(
        start=sentences[firsts[0]].start,
        onset=sentences[again[0]].start,
        end=sentences[again[-1]].end,
        period=round(median(distances)),
        cycles=_num_units(sentences, members) / _num_units(sentences, firsts),
        is_self_correction=fraction >= rule.self_correction,
        originals=[(sentences[index].start, sentences[index].end) for index in firsts],
        copies=[(sentences[index].start, sentences[index].end) for index in again],
    )


def _num_units(sentences: Sequence[Sentence], members: Sequence[int]) -> int:
    return sum(sentences[index].end - sentences[index].start for index in members)


def _in_groups(is_new: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    """Whether each sentence belongs to more than `most` new ones in a row."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_new, [False]])))
    inside = np.zeros(len(is_new), bool)
    for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        inside[first:last] = last - first > most
    return inside

"""Does a text say again what it said, if in other words? Streaks of sentences that revisit earlier ones.

Linear in the text: each sentence is compared with the `lookback` before it, and only where their numbers are equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from rapidfuzz.fuzz import ratio

from lit_illada.loops.config import StatementRule
from lit_illada.loops.phrases import holds_phrase
from lit_illada.loops.words import Sentence


@dataclass(frozen=True)
class Streak:
    """start: of the first copy. onset: of the first sentence said again. period: from a sentence back to the one it
    repeats, the median. cycles: sentences of the streak and their first copies, a distinct one. originals, copies:
    (start, end) of first copies and of revisits."""

    start: int
    onset: int
    end: int
    period: int
    cycles: float
    is_self_correction: bool
    originals: list[tuple[int, int]]
    copies: list[tuple[int, int]]


def revisits(said: Sequence[Sentence], rule: StatementRule) -> list[int | None]:
    """For each sentence the nearest of the `lookback` before it that says the same."""
    before: dict[tuple[str, ...], list[int]] = {}
    found: list[int | None] = []
    for index, sentence in enumerate(said):
        earlier = before.setdefault(sentence.numbers, [])
        del earlier[: max(0, len(earlier) - rule.lookback)]
        found.append(_nearest(said, index, earlier, rule))
        earlier.append(index)
    return found


def streaks(said: Sequence[Sentence], rule: StatementRule) -> list[Streak]:
    """Stretches in which min_revisits of every `window` sentences revisit another."""
    found = revisits(said, rule)
    is_revisit = np.array([item is not None for item in found], np.int64)
    if len(said) < rule.window or is_revisit.sum() < rule.min_revisits:
        return []
    counts = np.convolve(is_revisit, np.ones(rule.window, np.int64), mode="valid")
    is_inside = np.zeros(len(said) + 1, bool)
    for begin in np.flatnonzero(counts >= rule.min_revisits).tolist():
        is_inside[begin : begin + rule.window] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_inside])))
    return [
        _streak(said, found, first, last, rule)
        for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    ]


def _nearest(said: Sequence[Sentence], index: int, earlier: list[int], rule: StatementRule) -> int | None:
    text = said[index].text
    for other in reversed(earlier):
        if index - other > rule.lookback:
            return None
        if text == said[other].text or ratio(text, said[other].text, score_cutoff=rule.ratio) >= rule.ratio:
            return other
    return None


def _streak(said: Sequence[Sentence], found: list[int | None], first: int, last: int, rule: StatementRule) -> Streak:
    again = [index for index in range(first, last) if found[index] is not None]
    origins: dict[int, int] = {}  # the first sentence of each chain of revisits
    for index in again:
        origin = found[index]
        assert origin is not None
        while origin in origins:
            origin = origins[origin]
        origins[index] = origin
    firsts = sorted(set(origins.values()))
    members = [*firsts, *again]
    distances = [said[index].start - said[earlier].start for index in again if (earlier := found[index]) is not None]
    share = sum(holds_phrase(said[index].text) for index in members) / len(members)
    return Streak(
        start=said[firsts[0]].start,
        onset=said[again[0]].start,
        end=said[again[-1]].end,
        period=round(median(distances)),
        cycles=len(members) / len(firsts),
        is_self_correction=share >= rule.self_correction,
        originals=[(said[index].start, said[index].end) for index in firsts],
        copies=[(said[index].start, said[index].end) for index in again],
    )

"""Usual measures of repetition, as columns beside the kinds of loops.

None of them is an alarm: each misfires on finished texts of reasoning models.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_illada.loops.detect.statements import count_phrases

_ZLIB_WINDOW = 1500  # bytes


@dataclass(frozen=True)
class Secondary:
    """rep_4: the share of 4-grams that occur more than once. distinct_2: distinct 2-grams, of all. seq_rep_4: 1 −
    distinct 4-grams, of all (Welleck et al., arXiv 1908.04319). longest_repeat: units of the longest stretch that
    stands in the text twice, overlaps allowed. zlib_ratio: of the most compressible window of 1 500 bytes.
    phrases: phrases of self-correction in the text; phrases_per_1000: on a thousand units."""

    rep_4: float
    distinct_2: float
    seq_rep_4: float
    longest_repeat: int
    zlib_ratio: float | None
    phrases: int | None
    phrases_per_1000: float | None

    def rounded(self) -> dict[str, float | None]:
        return {name: round(value, 4) if value is not None else None for name, value in vars(self).items()}


def secondary(ids: NDArray[np.int32], text: str | None) -> Secondary:
    """All of them; those of the text only where there is one."""
    levels = _levels(ids)
    phrases = count_phrases(text) if text is not None else None
    counts_2, counts_4 = np.bincount(levels[1]), np.bincount(levels[2])
    return Secondary(
        rep_4=float(counts_4[counts_4 > 1].sum() / max(1, counts_4.sum())),
        distinct_2=len(counts_2) / counts_2.sum() if len(counts_2) else 1.0,
        seq_rep_4=1 - len(counts_4) / counts_4.sum() if len(counts_4) else 0.0,
        longest_repeat=longest_repeat(ids, levels),
        zlib_ratio=windowed_zlib(text) if text is not None else None,
        phrases=phrases,
        phrases_per_1000=1000 * phrases / max(1, len(ids)) if phrases is not None else None,
    )


def longest_repeat(ids: NDArray[np.int32], levels: list[NDArray[np.int64]] | None = None) -> int:
    """The length of the longest stretch that occurs twice, exactly: classes of 2^j-grams, then a bisection."""
    levels = levels or _levels(ids)
    repeated = [j for j, level in enumerate(levels) if _holds_twice(level)]
    if not repeated:
        return 0
    low, high = 2 ** repeated[-1], 2 ** (repeated[-1] + 1)  # a repeat of `low` exists, none of `high`
    while high - low > 1:
        middle = (low + high) // 2
        pairs = np.sort(_pairs(levels[repeated[-1]], middle - 2 ** repeated[-1]))
        if (pairs[1:] == pairs[:-1]).any():
            low = middle
        else:
            high = middle
    return low


def windowed_zlib(text: str) -> float:
    """The highest ratio of compression of windows of 1 500 bytes, half overlapping; above 6 is rare in good text."""
    data = text.encode("utf-8", "replace")
    starts = range(0, max(1, len(data) - _ZLIB_WINDOW // 2), _ZLIB_WINDOW // 2)
    windows = [data[start : start + _ZLIB_WINDOW] for start in starts]
    return max(len(window) / len(zlib.compress(window)) for window in windows)


def _levels(ids: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    """Classes of 1-, 2-, 4-, 8-grams, equal where those are, until none comes twice; three of them at least."""
    levels = [np.unique(ids, return_inverse=True)[1].astype(np.int64)]
    while len(levels) < 3 or _holds_twice(levels[-1]):
        levels.append(_joined(levels[-1], 2 ** (len(levels) - 1)))
    return levels


def _joined(classes: NDArray[np.int64], shift: int) -> NDArray[np.int64]:
    """Classes of the pairs (i, i + shift), numbered from 0 in the order of their values."""
    pairs = _pairs(classes, shift)
    order = np.argsort(pairs)
    ordered = pairs[order]
    numbers = np.zeros(len(pairs), np.int64)
    np.cumsum(ordered[1:] != ordered[:-1], out=numbers[1:])
    joined = np.empty_like(numbers)
    joined[order] = numbers
    return joined


def _pairs(classes: NDArray[np.int64], shift: int) -> NDArray[np.int64]:
    """A number for each pair (i, i + shift)."""
    if len(classes) <= shift:
        return classes[:0]
    return classes[: len(classes) - shift] * (classes.max() + 1) + classes[shift:]


def _holds_twice(classes: NDArray[np.int64]) -> bool:
    return len(classes) > 1 and int(np.bincount(classes).max()) > 1

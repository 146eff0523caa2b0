"""Measures and definitions of repetition from the literature, reported beside the kinds of loops.

None of them counts as a loop, since each also flags finished texts of reasoning models.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_illada.loops.detect.statements import count_phrases

_ZLIB_WINDOW = 1500  # bytes


@dataclass(frozen=True)
class Secondary:
    """Measures of one text."""

    rep_4: float  # fraction of 4-grams that occur more than once
    distinct_2: float  # distinct 2-grams, as a fraction of all
    seq_rep_4: float  # 1 − distinct 4-grams as a fraction of all (Welleck et al., arXiv 1908.04319)
    longest_repeat: int  # units of the longest stretch that occurs twice, overlaps allowed
    zlib_ratio: float | None  # compression ratio of the most compressible 1 500 bytes; None: only ids are known
    phrases: int | None  # phrases of self-correction; None: only ids are known
    phrases_per_1000: float | None  # the same per 1 000 units

    def rounded(self) -> dict[str, float | None]:
        """Measures by name, to four digits."""
        return {name: round(value, 4) if value is not None else None for name, value in vars(self).items()}


def secondary(ids: NDArray[np.int32], text: str | None) -> Secondary:
    """Measures of a text. ids: its units, shape (length,). text: None leaves the measures of characters None."""
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
    """Length of the longest stretch that occurs twice, by classes of 2^j-grams and bisection."""
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
    """Highest compression ratio of half-overlapping windows of 1 500 bytes; above 6 is rare in ordinary text."""
    data = text.encode("utf-8", "replace")
    starts = range(0, max(1, len(data) - _ZLIB_WINDOW // 2), _ZLIB_WINDOW // 2)
    windows = [data[start : start + _ZLIB_WINDOW] for start in starts]
    return max(len(window) / len(zlib.compress(window)) for window in windows)


def presets(ids: NDArray[np.int32], longest: int | None) -> dict[str, bool]:
    """Whether a text has a loop by each definition of the literature, by name.

    longest: units of the longest stretch of the ids that occurs twice; None: unknown.
    """
    return {
        "30-gram ≥ 20 times": (longest is None or longest >= 30) and repeated_ngram(ids, n=30, k=20),
        "repeated tail": repeated_tail(ids),
    }


def repeated_ngram(ids: NDArray[np.int32], n: int, k: int) -> bool:
    """Whether any n-gram occurs k times ("Wait, Wait, Wait… Why do reasoning models loop?", arXiv 2512.12895)."""
    if len(ids) < n + k - 1:
        return False
    classes, length = _classes(ids), 1
    while length < n:
        if np.bincount(classes).max() < k:  # a longer n-gram occurs no more often
            return False
        shift = min(length, n - length)
        classes = _joined(classes, shift)
        length += shift
    return int(np.bincount(classes).max()) >= k


def repeated_tail(ids: NDArray[np.int32], max_unit: int = 90, min_repeats: int = 2) -> bool:
    """Whether the text ends in min_repeats or more copies of a unit of at most max_unit tokens, or in more than 50 of a
    unit of one or two tokens (Holtzman et al., arXiv 1904.09751, as in their code)."""
    # a copy precedes the last unit only if it ends in the text's last token
    before = ids[-1 - max_unit : -1]
    units = (len(before) - np.flatnonzero(before == ids[-1:])[::-1]).tolist()
    repeats = [_tail_repeats(ids, unit) for unit in units]
    if not repeats:
        return False
    most = max(repeats)
    unit = units[repeats.index(most)]
    return most >= min_repeats and (unit >= 3 or most > 50)


def _levels(ids: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    """Classes of 1-, 2-, 4-, 8-grams, … up to the length at which all differ; at least three levels."""
    levels = [_classes(ids)]
    while len(levels) < 3 or _holds_twice(levels[-1]):
        levels.append(_joined(levels[-1], 2 ** (len(levels) - 1)))
    return levels


def _classes(ids: NDArray[np.int32]) -> NDArray[np.int64]:
    """The ids, numbered from 0 without gaps in the order of their values."""
    if len(ids) and ids.min() >= 0 and ids.max() < len(ids) and np.bincount(ids).all():  # they are already
        return ids.astype(np.int64)
    return np.unique(ids, return_inverse=True)[1].astype(np.int64)


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
    """A number for each pair of classes (i, i + shift), in the order of the pairs. Every class is below the length."""
    if len(classes) <= shift:
        return classes[:0]
    return classes[: len(classes) - shift] * len(classes) + classes[shift:]


def _holds_twice(classes: NDArray[np.int64]) -> bool:
    return len(classes) > 1 and int(classes.max()) + 1 < len(classes)


def _tail_repeats(ids: NDArray[np.int32], unit: int) -> int:
    differs = np.flatnonzero(ids[: len(ids) - unit][::-1] != ids[unit:][::-1])
    same = int(differs[0]) if len(differs) else len(ids) - unit
    return same // unit + 1

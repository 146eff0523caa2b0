"""The literature's own definitions of a loop, beside ours for comparison; they raise no alarm here."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def repeated_ngram(ids: NDArray[np.int32], n: int = 30, k: int = 20) -> bool:
    """Some n-gram occurs at least k times ("Wait, Wait, Wait… Why do reasoning models loop?", arXiv 2512.12895)."""
    if len(ids) < n + k - 1:
        return False
    classes, length = np.unique(ids, return_inverse=True)[1].astype(np.int64), 1
    while length < n:
        if np.bincount(classes).max() < k:  # what goes on longer occurs no more often
            return False
        shift = min(length, n - length)
        pairs = classes[: len(classes) - shift] * (classes.max() + 1) + classes[shift:]
        classes = np.unique(pairs, return_inverse=True)[1]
        length += shift
    return int(np.bincount(classes).max()) >= k


def repeated_tail(ids: NDArray[np.int32], max_unit: int = 90, min_repeats: int = 2) -> bool:
    """The text ends in a unit of at most max_unit that stands there min_repeats times or more; where it is of one or
    two tokens, more than 50 times (Holtzman et al., arXiv 1904.09751, as measured in their code)."""
    # a unit stands there again only if it ends in the text's last token
    units = [unit for unit in range(1, min(max_unit, len(ids) - 1) + 1) if ids[-1 - unit] == ids[-1]]
    repeats = [_tail_repeats(ids, unit) for unit in units]
    if not repeats:
        return False
    most = max(repeats)
    unit = units[repeats.index(most)]
    return most >= min_repeats and (unit >= 3 or most > 50)


PRESETS: dict[str, Callable[[NDArray[np.int32]], bool]] = {
    "30-gram ≥ 20 times": repeated_ngram,
    "repeated tail": repeated_tail,
}


def _tail_repeats(ids: NDArray[np.int32], unit: int) -> int:
    differs = np.flatnonzero(ids[: len(ids) - unit][::-1] != ids[unit:][::-1])
    same = int(differs[0]) if len(differs) else len(ids) - unit
    return same // unit + 1

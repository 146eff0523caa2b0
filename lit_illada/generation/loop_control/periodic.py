"""Where does a sequence repeat itself exactly? In a run, where every element equals the one a period before it.

Nothing here needs torch: generation asks it of the tokens so far, reports of finished texts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, order=True)
class Run:
    """x[i] = x[i − period] wherever both lie in start … start + length; it cannot be made longer on either side."""

    start: int
    period: int
    length: int

    @property
    def onset(self) -> int:
        """Where the second copy begins: the first element that says nothing new."""
        return self.start + self.period

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def cycles(self) -> float:
        return self.length / self.period


def periodic_runs(
    ids: NDArray[np.integer],
    max_period: int = 256,
    min_cycles: int = 3,
    min_length: int = 24,
    *,
    min_period: int = 1,
) -> list[Run]:
    """All runs of at least `min_cycles` copies and `min_length` elements, in the order of their starts.

    A run has the least of its periods, from `min_period` on: one that lies within a run of a smaller period is left
    out. O(len(ids) · max_period).
    """
    found: list[Run] = []
    for period in range(min_period, min(max_period, len(ids) // min_cycles) + 1):
        for run in _runs_of(ids, period, max(min_cycles * period, min_length)):
            if not any(other.start <= run.start and run.end <= other.end for other in found):
                found.append(run)
    return sorted(found)


def _runs_of(ids: NDArray[np.integer], period: int, min_length: int) -> Iterator[Run]:
    is_same = np.zeros(len(ids) - period + 2, np.int8)
    is_same[1:-1] = ids[period:] == ids[:-period]
    edges = np.flatnonzero(np.diff(is_same))
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if end - start + period >= min_length:
            yield Run(start, period, end - start + period)

"""Runs: spans of a sequence that repeat with a period, x[i] = x[i−p].

All periods up to max_period are compared at all positions: O(n · max_period) comparisons in numpy. Periods are compared
in groups, so that memory stays bounded for texts of many megabytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_illada.loops.config import LoopConfig

_CELLS = 2**22  # comparisons held at once
_PIECE, _PARTS = 2**14, 8  # matches per piece of a long stretch, and parts searched per piece: bounds the time
_COVERED = 0.9  # a run of which this fraction lies in runs of shorter periods is dropped


@dataclass(frozen=True, order=True)
class Run:
    """x[i] = x[i−period] for start + period ≤ i < start + length, except num_mismatches positions."""

    start: int
    period: int
    length: int
    num_mismatches: int = 0

    @property
    def cycles(self) -> float:
        return self.length / self.period

    @property
    def onset(self) -> int:
        """Where the second copy begins."""
        return self.start + self.period

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def copies(self) -> list[tuple[int, int]]:
        """(start, end) of each copy; the last one may be incomplete."""
        return list(pairwise([*range(self.start, self.end, self.period), self.end]))


def exact_runs(
    ids: NDArray[np.int32],
    *,
    max_period: int,
    min_cycles: float,
    min_length: int,
    above: int = 0,
    longest_repeat: int | None = None,
) -> list[Run]:
    """Maximal runs by start, without runs of a multiple of another's period.

    above: runs of this period or a shorter one, such as 2·2·2·…, only hide those of their multiples. longest_repeat:
    units of the longest stretch of the ids that occurs twice, which spares the search for longer ones; None: unknown.
    """
    if longest_repeat is not None and longest_repeat < _shortest_repeat(max_period, min_cycles, min_length):
        return []
    runs = [
        Run(first - period, period, last - first + 1 + period)
        for period, firsts, lasts, _ in _stretches(ids, 1, max_period, 0, min_cycles, min_length)
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)
    ]
    found = [run for run in runs if run.cycles >= min_cycles and run.length >= min_length]
    return [run for run in new_ones(found, np.zeros(len(ids), bool)) if run.period > above]


@cache
def _shortest_repeat(max_period: int, min_cycles: float, min_length: int) -> float:
    """Units that the shortest exact run repeats: its length without the first copy."""
    return min(max((min_cycles - 1) * period, min_length - period) for period in range(1, max_period + 1))


@cache
def _least_equal_part(num_compared: float, mismatch: float) -> float:
    """Equal comparisons in a row that a near-exact run of num_compared or more comparisons contains.

    m mismatches among n comparisons leave n − m equal ones in m + 1 parts. Their mean length falls only where m rises,
    and less at each rise, so that the first rise after num_compared is the lowest.
    """
    num_mismatches = int(mismatch * num_compared + 1e-9)
    here = (num_compared - num_mismatches) / (num_mismatches + 1)
    if mismatch == 0:
        return here
    following = (num_mismatches + 1) / mismatch
    return min(here, (following - num_mismatches - 1) / (num_mismatches + 2))


def periodic_runs(
    ids: NDArray[np.integer],
    max_period: int = 256,
    min_cycles: int = 3,
    min_length: int = 24,
    *,
    min_period: int = 1,
) -> list[Run]:
    """Exact maximal runs, in the order of their starts, for decisions during generation.

    A run inside one run of a shorter period is dropped. A run covered only by several others together is not, as a
    sampler acts on the run that reaches the end of the text.
    """
    runs: list[Run] = []
    for period, firsts, lasts, _ in _stretches(ids, min_period, max_period, 0, min_cycles, min_length):
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            run = Run(first - period, period, last - first + 1 + period)
            if not any(other.start <= run.start and run.end <= other.end for other in runs):
                runs.append(run)
    return sorted(runs)


def near_runs(ids: NDArray[np.int32], config: LoopConfig, longest_repeat: int | None = None) -> list[Run]:
    """Runs of longer periods than a flood's, with at most the fraction near_exact.mismatch of unequal comparisons, and
    at most max_gap of them in a row.

    Of a stretch with more mismatches, the longest part within the limit counts, and then the longest of the rest.
    longest_repeat: as for `exact_runs`.
    """
    rule, runs = config.near_exact, []
    num_compared = _shortest_repeat(config.max_period, rule.min_cycles, rule.min_length)
    if longest_repeat is not None and longest_repeat < _least_equal_part(num_compared, rule.mismatch):
        return []
    stretches = _stretches(ids, 1, config.max_period, rule.max_gap, rule.min_cycles, rule.min_length)
    for period, firsts, lasts, places in stretches:
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            left, right = np.searchsorted(places, [first, last + 1])
            least = max((rule.min_cycles - 1) * period, rule.min_length - period)
            for begin, end in _dense_parts(places[left:right], rule.mismatch, least):
                matches = int(np.searchsorted(places, end + 1) - np.searchsorted(places, begin))
                run = Run(begin - period, period, end - begin + 1 + period, end - begin + 1 - matches)
                if run.cycles >= rule.min_cycles and run.length >= rule.min_length:
                    runs.append(run)
    return [run for run in new_ones(runs, np.zeros(len(ids), bool)) if run.period > config.flood.max_period]


def without_templates(
    runs: list[Run], ids: NDArray[np.int32], is_content: NDArray[np.bool_], min_cycles: float
) -> list[Run]:
    """Runs whose copies stop adding content.

    A slot is a position at which copies differ in a content word, number or operator. In a running sum, a drill or a
    form, every copy has new fillings of its slots. A run is a loop if several consecutive copies repeat fillings of
    earlier copies: m such copies with u different fillings make (m + u) / u cycles, which must reach min_cycles.
    """
    return [run for run in runs if run.num_mismatches == 0 or _cycles_of_fillings(run, ids, is_content) >= min_cycles]


def _cycles_of_fillings(run: Run, ids: NDArray[np.int32], is_content: NDArray[np.bool_]) -> float:
    """The most cycles of fillings, with complete copies counted from the run's start or back from its end."""
    length = run.length // run.period * run.period
    parts = {(run.start, run.start + length), (run.end - length, run.end)}
    return max(_cycles_of_whole(ids[low:high], is_content[low:high], run.period) for low, high in parts)


def _cycles_of_whole(ids: NDArray[np.int32], is_content: NDArray[np.bool_], period: int) -> float:
    num_copies = len(ids) // period
    copies, says = ids.reshape(num_copies, period), is_content.reshape(num_copies, period)
    is_slot = ((copies[1:] != copies[:-1]) & (says[1:] | says[:-1])).any(0)
    if not is_slot.any():
        return num_copies
    _, first, filling = np.unique(copies[:, is_slot], axis=0, return_index=True, return_inverse=True)
    filling = filling.reshape(-1)
    is_old = first[filling] < np.arange(num_copies)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_old, [False]])))
    most = 1.0
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        num_fillings = len(np.unique(filling[begin:end]))
        most = max(most, (end - begin + num_fillings) / num_fillings)
    return most


def new_ones(runs: list[Run], is_covered: NDArray[np.bool_]) -> list[Run]:
    """Runs whose units no run of a shorter period covers, by start.

    is_covered: for each unit, whether a run covers it; updated in place.
    """
    new = []
    for run in sorted(runs, key=lambda run: (run.period, -run.length, run.start)):
        covered = is_covered[run.start : run.end]
        if np.count_nonzero(covered) < _COVERED * run.length:
            new.append(run)
            covered[:] = True
    return sorted(new, key=lambda run: (run.start, run.period))


def _stretches(
    ids: NDArray[np.integer], min_period: int, max_period: int, max_gap: int, min_cycles: float, min_length: int
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """(period, firsts, lasts, places): candidates for runs, stretches of places i with x[i] = x[i−p] across gaps."""
    n = len(ids)
    longest = min(max_period, int(n / min_cycles))
    width = n + max_gap + 1  # separates the rows, so that no stretch extends into the next period's
    at_once = max(1, _CELLS // width)
    padded = np.concatenate([np.full(longest, -1, ids.dtype), ids])
    step = padded.strides[0]
    for low in range(min_period, longest + 1, at_once):
        periods = np.arange(low, min(low + at_once, longest + 1))
        least = np.maximum((min_cycles - 1) * periods, min_length - periods)
        is_equal = np.zeros((len(periods), width), bool)
        # one view per period p of the sequence p units earlier; as_strided would take as long as the comparison
        earlier: NDArray[Any] = np.ndarray(
            (len(periods), n), ids.dtype, padded, offset=(longest - low) * step, strides=(-step, step)
        )
        np.equal(earlier, ids, out=is_equal[:, :n])
        places = is_equal.reshape(-1).nonzero()[0]
        if not len(places):
            continue
        breaks = (places[1:] - places[:-1] > max_gap + 1).nonzero()[0]
        firsts = places[np.concatenate([[0], breaks + 1])]
        lasts = places[np.concatenate([breaks, [len(places) - 1]])]
        is_long = lasts - firsts + 1 >= least.min()
        if not is_long.any():
            continue
        firsts, lasts = firsts[is_long], lasts[is_long]
        rows = firsts // width
        is_long = lasts - firsts + 1 >= least[rows]
        for row in np.unique(rows[is_long]).tolist():
            chosen = is_long & (rows == row)
            left, right = np.searchsorted(places, [row * width, (row + 1) * width])
            offset = row * width
            yield int(periods[row]), firsts[chosen] - offset, lasts[chosen] - offset, places[left:right] - offset


def _dense_parts(places: NDArray[np.int64], mismatch: float, least: float) -> Iterator[tuple[int, int]]:
    """(first, last) of disjoint parts, the longest first, of which at most the fraction `mismatch` are mismatches."""
    if len(places) >= (1 - mismatch) * (places[-1] - places[0] + 1):
        yield int(places[0]), int(places[-1])
        return
    for begin in range(0, len(places), _PIECE):
        waiting = [places[begin : begin + _PIECE]]
        for _ in range(_PARTS):
            piece = waiting.pop() if waiting else places[:0]
            if len(piece) < (1 - mismatch) * least:
                continue
            left, right = _longest_dense(piece, mismatch)
            first, last = int(piece[left]), int(piece[right])
            if last - first + 1 >= least:
                yield first, last
                waiting += [piece[:left], piece[right + 1 :]]


def _longest_dense(places: NDArray[np.int64], mismatch: float) -> tuple[int, int]:
    # places j..k are dense when k − j + 1 ≥ (1 − mismatch) · (places[k] − places[j] + 1): when score[k] + mismatch ≥
    # score[j] with the score below; for each k the first such j is found in the falling minimum of the scores
    score = np.arange(len(places)) - (1 - mismatch) * places
    minimum = np.minimum.accumulate(score)
    lefts = np.searchsorted(-minimum, -(score + mismatch + 1e-9), side="left")
    right = int(np.argmax(places - places[lefts]))
    return int(lefts[right]), right

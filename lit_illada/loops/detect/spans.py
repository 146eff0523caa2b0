"""Spans of a text that are loops, by kind, with their copies.

A span that a stricter kind covers is not listed again. In a text of more than MAX_LENGTH units, floods and exact runs
are searched everywhere, other kinds in its first MAX_LENGTH units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lit_illada.loops.config import LoopConfig
from lit_illada.loops.detect.runs import Run, bounds, exact_runs, near_runs, new_ones, without_templates
from lit_illada.loops.detect.statements import Streak, streaks
from lit_illada.loops.detect.structure import Structure, structure
from lit_illada.loops.detect.words import Units, sentences

MAX_LENGTH = 2**18

T = TypeVar("T", Run, Streak)


class Kind(StrEnum):
    """Kinds of failure of a text; of several, the first in this order is the main one."""

    flood = "flood"
    exact = "token_exact"
    near_exact = "near_exact"
    statement = "statement"
    overflow = "eos_overflow"
    runaway = "runaway"
    budget = "budget"
    circling = "circling"


LOOPS = (Kind.flood, Kind.exact, Kind.near_exact, Kind.statement)  # circling texts repeat themselves, but end


@dataclass(frozen=True)
class Span:
    """A looped stretch. Positions and lengths are in units."""

    kind: Kind
    start: int
    end: int
    period: int
    cycles: float
    onset: int
    num_mismatches: int
    originals: list[tuple[int, int]]  # (start, end) of first copies
    copies: list[tuple[int, int]]  # (start, end) of later copies


def loop_spans(units: Units, config: LoopConfig, longest_repeat: int | None = None) -> list[Span]:
    """Floods, exact and near-exact runs, by start; then statement streaks.

    longest_repeat: units of the longest stretch that occurs twice, which spares the search for longer ones; None:
    unknown.
    """
    repeat = len(units) if longest_repeat is None else longest_repeat
    is_covered = np.zeros(len(units), bool)
    parts = structure(units.written) if units.written is not None else Structure(None, None)
    exact = [
        run for run in _exact(units, config, repeat) if _has_words(run, units) or run.cycles >= config.flood.min_cycles
    ]
    floods = [  # a table of empty cells is not a flood
        run
        for run in _floods(units, config, repeat)
        if _has_words(run, units) or parts.share(parts.is_rigid, run.start, run.end) < 0.5
    ]
    runs = {
        Kind.flood: floods,
        Kind.exact: _outside_code(exact, parts, config.exact.min_cycles_in_code),
        Kind.near_exact: _free(_near(units, config), parts, config.near_exact.min_cycles_in_code),
    }
    spans = [_span(kind, run) for kind, found in runs.items() for run in new_ones(found, is_covered)]
    if units.written is not None:
        rule = config.statement
        items = list(sentences(units, rule.min_length, end=min(len(units), MAX_LENGTH)))
        spans += [_statement_span(streak) for streak in _free(streaks(items, rule), parts, rule.min_cycles_in_code)]
    return spans


def _has_words(run: Run, units: Units) -> bool:
    """Whether a copy contains a letter or digit, unlike empty cells and rules. True where only ids are known."""
    if not units.words:
        return True
    return any(any(map(str.isalnum, units.words[index])) for index in set(units.ids[run.start : run.onset].tolist()))


def is_template(units: Units, spans: list[Span], config: LoopConfig) -> bool:
    """Whether a stretch outside the spans repeats with other numbers, such as running sums and tables."""
    if units.template_ids is None:
        return False
    is_covered = np.zeros(len(units), bool)
    for span in spans:
        is_covered[span.start : span.end] = True
    runs = _near_runs(units.template_ids, config)
    return any(np.count_nonzero(is_covered[run.start : run.end]) < 0.5 * run.length for run in runs)


def _floods(units: Units, config: LoopConfig, repeat: int) -> list[Run]:
    rule = config.flood
    if repeat < _shortest_repeat(rule.max_period, rule.min_cycles, 1):
        return []
    return exact_runs(units.ids, min_period=1, max_period=rule.max_period, min_cycles=rule.min_cycles, min_length=1)


def _exact(units: Units, config: LoopConfig, repeat: int) -> list[Run]:
    rule = config.exact
    if repeat < _shortest_repeat(config.max_period, rule.min_cycles, rule.min_length):
        return []
    runs = exact_runs(
        units.ids, min_period=1, max_period=config.max_period, min_cycles=rule.min_cycles, min_length=rule.min_length
    )
    return _above(runs, config.flood.max_period)


@cache
def _shortest_repeat(max_period: int, min_cycles: float, min_length: int) -> float:
    """Units that the shortest exact run repeats: its length without the first copy."""
    return min(max((min_cycles - 1) * period, min_length - period) for period in range(1, max_period + 1))


def _near(units: Units, config: LoopConfig) -> list[Run]:
    runs = _near_runs(units.ids, config)
    return without_templates(runs, units.ids, units.is_content, config.near_exact.min_cycles)


def _near_runs(ids: NDArray[np.int32], config: LoopConfig) -> list[Run]:
    rule = config.near_exact
    runs = near_runs(
        ids[:MAX_LENGTH],
        min_period=1,
        max_period=config.max_period,
        min_cycles=rule.min_cycles,
        min_length=rule.min_length,
        mismatch=rule.mismatch,
        max_gap=rule.max_gap,
    )
    return _above(runs, config.flood.max_period)


def _above(runs: list[Run], period: int) -> list[Run]:
    """Runs of longer periods. A run of a shorter period, such as 2·2·2·…, is a flood or does not count at all."""
    return [run for run in runs if run.period > period]


def _outside_code(runs: list[Run], parts: Structure, min_cycles: float) -> list[Run]:
    """Runs outside code and tables, and those inside (which repeat by design) of min_cycles or more."""

    def is_inside(run: Run) -> bool:
        masks = (parts.is_code, parts.is_rigid)
        return any(parts.share(mask, run.start, run.end) > 0.5 for mask in masks)

    return [run for run in runs if run.cycles >= min_cycles or not is_inside(run)]


def _free(loops: Sequence[T], parts: Structure, min_cycles: float) -> list[T]:
    """Loops outside closed code blocks and tables, which repeat with small changes at any length. In a block that is
    not closed, loops of at least min_cycles copies count."""
    free = [loop for loop in loops if parts.share(parts.is_rigid, loop.start, loop.end) <= 0.5]
    return [
        loop for loop in free if loop.cycles >= min_cycles or parts.share(parts.is_code, loop.start, loop.end) <= 0.5
    ]


def _span(kind: Kind, run: Run) -> Span:
    first, *later = bounds(run)
    return Span(kind, run.start, run.end, run.period, run.cycles, run.onset, run.num_mismatches, [first], later)


def _statement_span(streak: Streak) -> Span:
    about = (streak.start, streak.end, streak.period, streak.cycles, streak.onset)
    return Span(Kind.statement, *about, 0, streak.originals, streak.copies)

"""Which stretches of a text are loops, of which kind, and where are their copies?

What a stricter kind tells is not told again. Of a text above MAX_LENGTH units, floods and exact runs are looked for
everywhere, the other kinds in its first MAX_LENGTH units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lit_illada.loops.config import LoopConfig
from lit_illada.loops.runs import Run, bounds, exact_runs, near_runs, new_ones, without_templates
from lit_illada.loops.statements import Streak, streaks
from lit_illada.loops.words import Units, sentences

MAX_LENGTH = 2**18

T = TypeVar("T", Run, Streak)


class Kind(StrEnum):
    """What may be wrong with a text; several may hold, and the first is the headline."""

    flood = "flood"
    exact = "token_exact"
    near_exact = "near_exact"
    statement = "statement"
    overflow = "eos_overflow"
    runaway = "runaway"
    budget = "budget"
    circling = "circling"


LOOPS = (Kind.flood, Kind.exact, Kind.near_exact, Kind.statement)  # circling goes round too, but comes to an end


@dataclass(frozen=True)
class Span:
    """A looped stretch. originals: (start, end) of first copies; copies: of later ones. All in units."""

    kind: Kind
    start: int
    end: int
    period: int
    cycles: float
    onset: int
    num_mismatches: int
    originals: list[tuple[int, int]]
    copies: list[tuple[int, int]]


def loop_spans(units: Units, config: LoopConfig) -> list[Span]:
    """Floods, exact and near-exact runs, by start; then statement streaks."""
    is_told = np.zeros(len(units), bool)
    runs = {
        Kind.flood: _floods(units, config),
        Kind.exact: _counting(_exact(units, config), units, config.exact.min_cycles_in_code),
        Kind.near_exact: _counting(_near(units, config), units, config.near_exact.min_cycles_in_code),
    }
    spans = [_span(kind, run) for kind, found in runs.items() for run in new_ones(found, is_told)]
    if units.written is not None:
        rule = config.statement
        said = [sentence for sentence in sentences(units, rule.min_length) if sentence.end <= MAX_LENGTH]
        found = _counting(streaks(said, rule), units, rule.min_cycles_in_code)
        spans += [_statement_span(streak) for streak in found]
    return spans


def is_template(units: Units, spans: list[Span], config: LoopConfig) -> bool:
    """Whether something repeats but for its numbers: running sums, tables."""
    if units.template_ids is None:
        return False
    is_told = np.zeros(len(units), bool)
    for span in spans:
        is_told[span.start : span.end] = True
    runs = _near_runs(units.template_ids, config)
    return any(np.count_nonzero(is_told[run.start : run.end]) < 0.5 * run.length for run in runs)


def _floods(units: Units, config: LoopConfig) -> list[Run]:
    rule = config.flood
    return exact_runs(units.ids, min_period=1, max_period=rule.max_period, min_cycles=rule.min_cycles, min_length=1)


def _exact(units: Units, config: LoopConfig) -> list[Run]:
    runs = exact_runs(
        units.ids,
        min_period=1,
        max_period=config.max_period,
        min_cycles=config.exact.min_cycles,
        min_length=config.exact.min_length,
    )
    return _above(runs, config.flood.max_period)


def _near(units: Units, config: LoopConfig) -> list[Run]:
    return without_templates(_near_runs(units.ids, config), units.ids, units.template_ids)


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
    """Those of longer periods. What has a shorter one, as 2·2·2·2·… has, is a flood or nothing, not a run of 4."""
    return [run for run in runs if run.period > period]


def _counting(loops: Sequence[T], units: Units, min_cycles: float) -> list[T]:
    """Those that count: code repeats itself, so what lies in fences must do so more often."""
    is_code = units.written.is_code if units.written is not None else None
    if is_code is None:
        return list(loops)
    return [loop for loop in loops if loop.cycles >= min_cycles or is_code[loop.start : loop.end].mean() <= 0.5]


def _span(kind: Kind, run: Run) -> Span:
    first, *later = bounds(run)
    return Span(kind, run.start, run.end, run.period, run.cycles, run.onset, run.num_mismatches, [first], later)


def _statement_span(streak: Streak) -> Span:
    about = (streak.start, streak.end, streak.period, streak.cycles, streak.onset)
    return Span(Kind.statement, *about, 0, streak.originals, streak.copies)

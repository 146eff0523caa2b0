"""Spans of a text that are loops, by kind, with their copies.

A span that a stricter kind covers is not listed again. In a text of more than MAX_LENGTH units, floods and exact runs
are searched everywhere, other kinds in its first MAX_LENGTH units.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from lit_illada.loops.config import LoopConfig
from lit_illada.loops.detect.runs import Run, exact_runs, near_runs, new_ones, without_templates
from lit_illada.loops.detect.statements import Streak, streaks
from lit_illada.loops.detect.structure import Structure, structure
from lit_illada.loops.detect.words import Units, sentences

MAX_LENGTH = 2**18


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

    longest_repeat: as for `exact_runs`.
    """
    flood, exact, near, statement = config.flood, config.exact, config.near_exact, config.statement
    floods = exact_runs(
        units.ids,
        max_period=flood.max_period,
        min_cycles=flood.min_cycles,
        min_length=1,
        longest_repeat=longest_repeat,
    )
    exact_ones = exact_runs(
        units.ids,
        max_period=config.max_period,
        min_cycles=exact.min_cycles,
        min_length=exact.min_length,
        above=flood.max_period,
        longest_repeat=longest_repeat,
    )
    near_ones = near_runs(units.ids[:MAX_LENGTH], config, longest_repeat)
    near_ones = without_templates(near_ones, units.ids, units.is_content, near.min_cycles)
    wordless = {run for run in (*floods, *exact_ones) if not _has_words(run, units)}
    exact_ones = [run for run in exact_ones if run not in wordless or run.cycles >= flood.min_cycles]
    parts = structure(units.written) if units.written is not None else Structure(None, None)
    runs = {
        # a table of empty cells is not a flood
        Kind.flood: [run for run in floods if run not in wordless or parts.rigid_share(run) < 0.5],
        Kind.exact: parts.outside_code(exact_ones, exact.min_cycles_in_code),
        Kind.near_exact: parts.outside_closed_code(near_ones, near.min_cycles_in_code),
    }
    is_covered = np.zeros(len(units), bool)
    spans = [_span(kind, run) for kind, found in runs.items() for run in new_ones(found, is_covered)]
    if units.written is not None:
        items = list(sentences(units, statement.min_length, end=min(len(units), MAX_LENGTH)))
        found = parts.outside_closed_code(streaks(items, statement), statement.min_cycles_in_code)
        spans += [_statement_span(streak) for streak in found]
    return spans


def _has_words(run: Run, units: Units) -> bool:
    """Whether a copy contains a letter or digit, unlike empty cells and rules. True where only ids are known."""
    if not units.words:
        return True
    return any(any(map(str.isalnum, units.words[index])) for index in set(units.ids[run.start : run.onset].tolist()))


def _span(kind: Kind, run: Run) -> Span:
    first, *later = run.copies
    return Span(kind, run.start, run.end, run.period, run.cycles, run.onset, run.num_mismatches, [first], later)


def _statement_span(streak: Streak) -> Span:
    about = (streak.start, streak.end, streak.period, streak.cycles, streak.onset)
    return Span(Kind.statement, *about, 0, streak.originals, streak.copies)


def is_template(units: Units, spans: list[Span], config: LoopConfig) -> bool:
    """Whether a stretch outside the spans repeats with other numbers, such as running sums and tables."""
    if units.template_ids is None:
        return False
    is_covered = np.zeros(len(units), bool)
    for span in spans:
        is_covered[span.start : span.end] = True
    runs = near_runs(units.template_ids[:MAX_LENGTH], config)
    return any(np.count_nonzero(is_covered[run.start : run.end]) < 0.5 * run.length for run in runs)

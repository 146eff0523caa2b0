"""Which stretches of a text are loops, of which kind, and where are their copies?

What a stricter kind tells is not told again. Of a text above MAX_LENGTH units, floods and exact runs are looked for
everywhere, the other kinds in its first MAX_LENGTH units.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from lit_illada.loops.config import LoopConfig
from lit_illada.loops.runs import Run, bounds, exact_runs, near_runs, union_length, without_templates
from lit_illada.loops.statements import Streak, streaks
from lit_illada.loops.words import Units, sentences

MAX_LENGTH = 2**18


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
    """Floods, exact and near-exact runs and statement streaks; what a stricter kind tells is not told again."""
    flood, exact, near, said = config.flood, config.exact, config.near_exact, config.statement
    head = units.ids[:MAX_LENGTH]
    floods = exact_runs(units.ids, min_period=1, max_period=flood.max_period, min_cycles=flood.min_cycles, min_length=1)
    found = [_span(Kind.flood, run) for run in floods]
    exacts = exact_runs(
        units.ids,
        min_period=flood.max_period + 1,
        max_period=config.max_period,
        min_cycles=exact.min_cycles,
        min_length=exact.min_length,
    )
    found += _new(found, exacts, Kind.exact, _counts_in_code(units, exact.min_cycles_in_code))
    nears = near_runs(
        head,
        min_period=flood.max_period + 1,
        max_period=config.max_period,
        min_cycles=near.min_cycles,
        min_length=near.min_length,
        mismatch=near.mismatch,
        max_gap=near.max_gap,
    )
    nears = without_templates(nears, units.ids, units.template_ids)
    found += _new(found, nears, Kind.near_exact, _counts_in_code(units, near.min_cycles_in_code))
    if units.written is not None:
        heard = [sentence for sentence in sentences(units, said.min_length) if sentence.end <= MAX_LENGTH]
        counts = _counts_in_code(units, said.min_cycles_in_code)
        found += [_statement_span(streak) for streak in streaks(heard, said) if counts(streak)]
    return found


def _counts_in_code(units: Units, min_cycles: float) -> Callable[[Run | Streak], bool]:
    """Whether a run or streak counts: code repeats itself, so in fences it must do so more often."""

    def counts(loop: Run | Streak) -> bool:
        is_code = units.written.is_code if units.written is not None else None
        if is_code is None or loop.cycles >= min_cycles:
            return True
        return bool(is_code[loop.start : loop.end].mean() <= 0.5)

    return counts


def _new(told: list[Span], runs: list[Run], kind: Kind, counts: Callable[[Run | Streak], bool]) -> list[Span]:
    """The runs that lie not mostly in told spans."""
    spans = [(span.start, span.end) for span in told]
    return [_span(kind, run) for run in runs if counts(run) and _inside(run, spans) < 0.9 * run.length]


def _inside(run: Run, spans: list[tuple[int, int]]) -> int:
    cut = ((max(run.start, start), min(run.end, end)) for start, end in spans)
    return union_length([(start, end) for start, end in cut if start < end])


def _span(kind: Kind, run: Run) -> Span:
    first, *later = bounds(run)
    return Span(kind, run.start, run.end, run.period, run.cycles, run.onset, run.num_mismatches, [first], later)


def _statement_span(streak: Streak) -> Span:
    return Span(
        Kind.statement,
        streak.start,
        streak.end,
        streak.period,
        streak.cycles,
        streak.onset,
        0,
        streak.originals,
        streak.copies,
    )


def is_template(units: Units, spans: list[Span], config: LoopConfig) -> bool:
    """Whether something repeats but for its numbers: running sums, tables."""
    if units.template_ids is None:
        return False
    rule = config.near_exact
    runs = near_runs(
        units.template_ids[:MAX_LENGTH],
        min_period=config.flood.max_period + 1,
        max_period=config.max_period,
        min_cycles=rule.min_cycles,
        min_length=rule.min_length,
        mismatch=rule.mismatch,
        max_gap=rule.max_gap,
    )
    told = [(span.start, span.end) for span in spans]
    return any(_inside(run, told) < 0.5 * run.length for run in runs)

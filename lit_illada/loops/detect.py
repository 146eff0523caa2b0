"""Does a generated text loop, how, from where on, and how much of it is waste?

    findings = detect(text)                                  any text
    findings = detect_tokens(token_ids, tokens, steps=steps) a model's own tokens, with when each was committed

Looked for anywhere in the text, since on a fixed canvas a loop lies in its middle. Linear in the text. Of a text above
MAX_LENGTH units exact runs are looked for everywhere, the rest in its first MAX_LENGTH units.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import median

import numpy as np

from lit_illada.loops.config import LoopConfig
from lit_illada.loops.ending import ANSWER_SECTION, Ending, ending, num_units_after
from lit_illada.loops.phrases import holds_phrase
from lit_illada.loops.presets import PRESETS
from lit_illada.loops.runs import Run, bounds, exact_runs, near_runs, union_length
from lit_illada.loops.secondary import Secondary, secondary
from lit_illada.loops.statements import Streak, streaks
from lit_illada.loops.words import Units, sentences, units_of_text, units_of_tokens

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


@dataclass(frozen=True)
class Findings:
    """What was found in one text.

    kinds: all that hold, the headline first; empty: nothing. length: units of the content, before the first stop text.
    spans: the looped stretches; main: the headline's longest. coverage: the share of the content in loops, first
    copies left out; wasted: that in units. is_escaped, is_terminal, is_forced_closure: what follows the last loop.
    is_template: alike but for its numbers, which is no loop. temporal_onset: the median denoising step that committed
    the main loop's second copy; temporal_lead: by how many steps it came after the first copy (below 0: before it).
    wasted_forwards: denoising steps that committed nothing but waste. answer_length: units behind the answer.
    """

    kinds: tuple[Kind, ...]
    length: int
    num_stops: int
    spans: tuple[Span, ...]
    coverage: float
    wasted: int
    is_escaped: bool
    is_terminal: bool
    is_forced_closure: bool
    is_template: bool
    is_self_correction: bool
    is_finished: bool | None
    has_answer: bool
    temporal_onset: float | None
    temporal_lead: float | None
    wasted_forwards: int | None
    presets: dict[str, bool]
    secondary: Secondary
    units: Units

    @property
    def is_loop(self) -> bool:
        return any(kind in LOOPS for kind in self.kinds)

    @property
    def main(self) -> Span | None:
        """The longest span of the headline kind."""
        return next((max(found, key=lambda span: span.end - span.start) for found in self._by_kind() if found), None)

    def _by_kind(self) -> list[list[Span]]:
        return [[span for span in self.spans if span.kind is kind] for kind in self.kinds]


def detect(text: str, config: LoopConfig | None = None, **about: bool | int | None) -> Findings:
    """Findings in a text, stop texts and all. about: see `_findings`."""
    config = config or LoopConfig()
    end = ending(text, config.stop_texts)
    return _findings(units_of_text(end.content), end, config, None, **about)  # type: ignore[arg-type]


def detect_tokens(
    token_ids: Sequence[int],
    tokens: Sequence[str] | None = None,
    config: LoopConfig | None = None,
    *,
    steps: Sequence[int] | None = None,
    **about: bool | int | None,
) -> Findings:
    """Findings in a model's tokens; without their texts only what ids can tell. steps: the denoising step of each."""
    config = config or LoopConfig()
    end = Ending("", 0, False, None)
    if tokens is not None:
        end = ending("".join(tokens), config.stop_texts)
        first_stop = next((i for i, token in enumerate(tokens) if token.strip() in config.stop_texts), len(tokens))
        token_ids, tokens = token_ids[:first_stop], tokens[:first_stop]
    return _findings(units_of_tokens(token_ids, tokens), end, config, steps, **about)  # type: ignore[arg-type]


def _findings(
    units: Units,
    end: Ending,
    config: LoopConfig,
    steps: Sequence[int] | None,
    *,
    is_finished: bool | None = None,
    has_answer: bool | None = None,
    num_canvas: int | None = None,
) -> Findings:
    """is_finished: whether the model ended the text itself; None: told by a stop text, else unknown. has_answer: None:
    told by the text. num_canvas: the places the model could write; None: the content and the stop texts behind it."""
    finished = is_finished if is_finished is not None else (True if end.num_stops else None)
    answered = end.has_answer if has_answer is None else has_answer
    spans = _loop_spans(units, config)
    reached = max((span.end for span in spans), default=0)
    closure = bool(spans) and _is_forced_closure(units, end, reached, max(span.period for span in spans), config)
    is_escaped = bool(spans) and not closure and len(units) - reached >= config.ending.escaped_share * len(units)
    comes_to_an_end = is_escaped or (finished is True and not closure)
    if comes_to_an_end:
        spans = [replace(span, kind=Kind.circling) if span.kind is Kind.statement else span for span in spans]
    kinds = {span.kind for span in spans}
    num_canvas = num_canvas or len(units) + end.num_stops
    if not answered and end.num_stops >= config.ending.overflow_share * num_canvas > 0:
        kinds.add(Kind.overflow)
    if end.answer_end is not None and num_units_after(end.content, end.answer_end) >= config.ending.runaway_length:
        kinds.add(Kind.runaway)
    if finished is False and not kinds:
        kinds.add(Kind.budget)
    told = [span for span in spans if span.kind in LOOPS]
    wasted = union_length([copy for span in told for copy in span.copies])
    ordered = tuple(kind for kind in Kind if kind in kinds)
    loop_end = max((span.end for span in told), default=0)
    findings = Findings(
        kinds=ordered,
        length=len(units),
        num_stops=end.num_stops,
        spans=tuple(spans),
        coverage=wasted / max(1, len(units)),
        wasted=wasted,
        is_escaped=is_escaped,
        is_terminal=bool(told) and len(units) - loop_end <= config.ending.terminal_slack,
        is_forced_closure=bool(told) and closure,
        is_template=_is_template(units, spans, config),
        is_self_correction=_is_self_correction(units, spans),
        is_finished=finished,
        has_answer=answered,
        temporal_onset=None,
        temporal_lead=None,
        wasted_forwards=None,
        presets={name: preset(units.ids) for name, preset in PRESETS.items()},
        secondary=secondary(units.ids[:MAX_LENGTH], _first_part(units)),
        units=units,
    )
    return _in_time(findings, steps) if steps is not None else findings


def _loop_spans(units: Units, config: LoopConfig) -> list[Span]:
    """Floods, exact and near-exact runs and statement streaks; what a stricter kind tells is not told again."""
    flood, exact, near, said = config.flood, config.exact, config.near_exact, config.statement
    head = units.ids[:MAX_LENGTH]
    floods = exact_runs(
        units.ids, min_period=1, max_period=flood.max_period, min_cycles=flood.min_cycles, min_length=1
    )
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
    found += _new(found, nears, Kind.near_exact, _counts_in_code(units, near.min_cycles_in_code))
    if units.text is not None:
        heard = [sentence for sentence in sentences(units, said.min_length) if sentence.end <= MAX_LENGTH]
        counts = _counts_in_code(units, said.min_cycles_in_code)
        found += [_statement_span(streak) for streak in streaks(heard, said) if counts(streak)]
    return found


def _counts_in_code(units: Units, min_cycles: float) -> Callable[[Run | Streak], bool]:
    """Whether a run or streak counts: code repeats itself, so in fences it must do so more often."""

    def counts(loop: Run | Streak) -> bool:
        if units.is_code is None or loop.cycles >= min_cycles:
            return True
        return bool(units.is_code[loop.start : loop.end].mean() <= 0.5)

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


def _is_template(units: Units, spans: list[Span], config: LoopConfig) -> bool:
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


def _is_self_correction(units: Units, spans: list[Span]) -> bool:
    """Whether the looped text is doubt: half of its sentences, first copies and later ones, hold such a phrase."""
    if units.text is None or not spans:
        return False
    assert units.starts is not None and units.ends is not None
    main = max(spans, key=lambda span: span.end - span.start)
    looped = units.text[units.starts[main.start] : units.ends[main.end - 1]]
    said = list(sentences(units_of_text(looped), 3))
    return sum(holds_phrase(sentence.text) for sentence in said) >= 0.5 * max(1, len(said))


def _is_forced_closure(units: Units, end: Ending, reached: int, period: int, config: LoopConfig) -> bool:
    """Whether behind the loop comes nothing but an answer section, where the canvas ends."""
    rest = len(units) - reached
    room = config.ending.closure_blocks * config.ending.block_length
    if units.text is None or not 0 < rest <= room or end.num_stops > room:
        return False
    after = units.text_from(reached)
    answer = ANSWER_SECTION.search(after)
    # a further copy that was cut short may stand before it
    return answer is not None and len(units_of_text(after[: answer.start()])) < max(period, 8)


def _in_time(findings: Findings, steps: Sequence[int]) -> Findings:
    when = np.asarray(steps[: findings.length])
    is_wasted = np.zeros(findings.length, bool)
    for span in findings.spans:
        for start, end in span.copies if span.kind in LOOPS else ():
            is_wasted[start:end] = True
    wasted_forwards = len(set(when[is_wasted].tolist()) - set(when[~is_wasted].tolist()))
    main = findings.main
    if main is None or not main.copies:
        return replace(findings, wasted_forwards=wasted_forwards)
    (first, *_), (second, *_) = main.originals, main.copies
    onset = median(when[second[0] : second[1]].tolist())
    lead = onset - median(when[first[0] : first[1]].tolist())
    return replace(findings, wasted_forwards=wasted_forwards, temporal_onset=onset, temporal_lead=lead)


def _first_part(units: Units) -> str | None:
    if units.text is None or len(units) <= MAX_LENGTH:
        return units.text
    assert units.ends is not None
    return units.text[: units.ends[MAX_LENGTH - 1]]

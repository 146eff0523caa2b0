"""Findings in one text: whether and how it loops, from where, and how many units are wasted.

    findings = detect(text)                                  any text
    findings = detect_tokens(token_ids, tokens, steps=steps) a model's own tokens, with the step that committed each

The whole text is searched, since on a fixed canvas loops can lie in its middle. The time is linear in the length of the
text. Beyond MAX_LENGTH units, only floods and exact runs are searched.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median

import numpy as np
from numpy.typing import NDArray

from lit_illada.loops.config import LoopConfig
from lit_illada.loops.detect.ending import Ending, ending, is_forced_closure, num_units_after
from lit_illada.loops.detect.secondary import Secondary, presets, secondary
from lit_illada.loops.detect.spans import LOOPS, MAX_LENGTH, Kind, Span, is_template, loop_spans
from lit_illada.loops.detect.statements import holds_phrase
from lit_illada.loops.detect.words import Units, sentences, units_of_text, units_of_tokens


@dataclass(frozen=True)
class Findings:
    """Findings in one text. Positions and lengths are in units."""

    kinds: tuple[Kind, ...]  # all that apply, the main one first
    length: int  # of the content, before the first stop text
    num_stops: int  # stop texts after the content
    spans: tuple[Span, ...]  # the looped stretches
    coverage: float  # fraction of the content that is copies; first copies are left out
    wasted: int  # units that are copies
    is_escaped: bool  # new text follows the last loop
    is_terminal: bool  # the last loop reaches the content's end
    is_forced_closure: bool  # only an answer section follows, at the end of the canvas
    is_template: bool  # a stretch repeats with other numbers, counting words or operators, which is not a loop
    is_self_correction: bool  # at least half of the looped sentences contain a phrase of doubt
    is_finished: bool | None  # whether the model ended the text; None: unknown
    has_answer: bool
    temporal_onset: float | None  # median denoising step that committed the main loop's second copy; None: no trace
    temporal_lead: float | None  # steps from the first copy's to the second's; below 0: the second came first
    wasted_forwards: int | None  # denoising steps that committed only copies; None: no trace
    presets: dict[str, bool]  # the literature's definitions, by name
    secondary: Secondary
    units: Units

    @cached_property
    def is_loop(self) -> bool:
        return any(kind in LOOPS for kind in self.kinds)

    @property
    def main(self) -> Span | None:
        """The longest span of the main kind; None without spans."""
        return next((max(found, key=lambda span: span.end - span.start) for found in self._by_kind() if found), None)

    def _by_kind(self) -> list[list[Span]]:
        return [[span for span in self.spans if span.kind is kind] for kind in self.kinds]


@dataclass(frozen=True)
class Known:
    """Facts about a text from outside it."""

    is_finished: bool | None = None  # whether the model ended it; None: True with a stop text, else unknown
    has_answer: bool | None = None  # None: by the text
    num_canvas: int | None = None  # positions that the model could write; None: content and stop texts
    stop_text: str | None = None  # text of the model's end-of-text token, besides those of the config

    def stop_texts(self, config: LoopConfig) -> list[str]:
        """All texts of end-of-text tokens."""
        return config.stop_texts if self.stop_text is None else [*config.stop_texts, self.stop_text]


def detect(text: str, config: LoopConfig | None = None, known: Known | None = None) -> Findings:
    """Findings in a text, which may include its stop texts."""
    config, known = config or LoopConfig(), known or Known()
    end = ending(text, known.stop_texts(config))
    return _findings(units_of_text(end.content), end, config, known)


def detect_tokens(
    token_ids: Sequence[int],
    tokens: Sequence[str] | None = None,
    config: LoopConfig | None = None,
    known: Known | None = None,
    *,
    steps: Sequence[int] | None = None,
) -> Findings:
    """Findings in a model's tokens; without their texts, only those that need ids. steps: denoising step of each."""
    config, known = config or LoopConfig(), known or Known()
    end = Ending("", 0, False, None)
    if tokens is not None:
        stop_texts = known.stop_texts(config)
        end = ending("".join(tokens), stop_texts)
        first_stop = next((i for i, token in enumerate(tokens) if token.strip() in stop_texts), len(tokens))
        token_ids, tokens = token_ids[:first_stop], tokens[:first_stop]
    findings = _findings(units_of_tokens(token_ids, tokens), end, config, known)
    return findings if steps is None else _in_time(findings, steps)


def _findings(units: Units, end: Ending, config: LoopConfig, known: Known) -> Findings:
    finished = known.is_finished if known.is_finished is not None else (True if end.num_stops else None)
    answered = end.has_answer if known.has_answer is None else known.has_answer
    text = _first_part(units)
    measures = secondary(units.ids[:MAX_LENGTH], text)
    longest_repeat = measures.longest_repeat if len(units) <= MAX_LENGTH else None
    spans = loop_spans(units, config, longest_repeat)
    has_template = is_template(units, spans, config)
    loops_end = max((span.end for span in spans), default=len(units))
    longest_period = max((span.period for span in spans), default=0)
    closure = is_forced_closure(units, end, loops_end, longest_period, config.ending)
    rest = len(units) - loops_end
    is_escaped = bool(spans) and not closure and rest >= config.ending.escaped_fraction * len(units)
    # the text ended by itself, so repeated sentences are circling, not a loop
    if is_escaped or (finished is True and not closure):
        spans = [replace(span, kind=Kind.circling) if span.kind is Kind.statement else span for span in spans]
    kinds = {span.kind for span in spans}
    num_canvas = known.num_canvas or len(units) + end.num_stops
    if not answered and end.num_stops >= config.ending.overflow_fraction * num_canvas > 0:
        kinds.add(Kind.overflow)
    written, answer_end = units.written, end.answer_end
    if written and answer_end is not None and num_units_after(written, answer_end) >= config.ending.runaway_length:
        kinds.add(Kind.runaway)
    if finished is False and not kinds:
        kinds.add(Kind.budget)
    has_loops = any(span.kind in LOOPS for span in spans)
    wasted = int(np.count_nonzero(_is_copy(spans, len(units))))
    return Findings(
        kinds=tuple(kind for kind in Kind if kind in kinds),
        length=len(units),
        num_stops=end.num_stops,
        spans=tuple(spans),
        coverage=wasted / max(1, len(units)),
        wasted=wasted,
        is_escaped=has_loops and is_escaped,
        is_terminal=has_loops and rest <= config.ending.terminal_slack,
        is_forced_closure=has_loops and closure,
        is_template=has_template,
        is_self_correction=_is_self_correction(units, spans),
        is_finished=finished,
        has_answer=answered,
        temporal_onset=None,
        temporal_lead=None,
        wasted_forwards=None,
        presets=presets(units.ids, longest_repeat),
        secondary=measures,
        units=units,
    )


def _is_self_correction(units: Units, spans: list[Span]) -> bool:
    """Whether at least half of the sentences of the longest span, first copies included, contain a phrase of doubt."""
    if units.written is None or not spans:
        return False
    main = max(spans, key=lambda span: span.end - span.start)
    items = list(sentences(units, 3, main.start, main.end))
    return sum(holds_phrase(sentence.text) for sentence in items) >= 0.5 * max(1, len(items))


def _in_time(findings: Findings, steps: Sequence[int]) -> Findings:
    when = np.asarray(steps[: findings.length])
    is_wasted = _is_copy(findings.spans, findings.length)
    wasted_forwards = len(set(when[is_wasted].tolist()) - set(when[~is_wasted].tolist()))
    main = findings.main
    if main is None or not main.copies:
        return replace(findings, wasted_forwards=wasted_forwards)
    (first, *_), (second, *_) = main.originals, main.copies
    onset = median(when[second[0] : second[1]].tolist())
    lead = onset - median(when[first[0] : first[1]].tolist())
    return replace(findings, wasted_forwards=wasted_forwards, temporal_onset=onset, temporal_lead=lead)


def _is_copy(spans: Sequence[Span], length: int) -> NDArray[np.bool_]:
    """Whether each unit is in a later copy of a loop, shape (length,)."""
    is_copy = np.zeros(length, bool)
    for span in spans:
        for start, end in span.copies if span.kind in LOOPS else ():
            is_copy[start:end] = True
    return is_copy


def _first_part(units: Units) -> str | None:
    if units.written is None or len(units) <= MAX_LENGTH:
        return units.written.text if units.written is not None else None
    return units.written.between(0, MAX_LENGTH)

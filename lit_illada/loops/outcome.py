"""Outcome of one generation: the text, the findings in it, and whether its answer is right."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lit_illada.loops.config import LoopConfig, Unit
from lit_illada.loops.detect.ending import reasoning_segment
from lit_illada.loops.detect.findings import Findings, Known, detect, detect_tokens
from lit_illada.loops.detect.spans import Kind
from lit_illada.loops.detect.statements import revisits
from lit_illada.loops.detect.warning import Watched, watch
from lit_illada.loops.detect.words import sentences
from lit_illada.loops.records import Generation
from lit_illada.tasks.references import is_correct, states_answer
from lit_illada.tasks.traces import well_formed_fraction


@dataclass(frozen=True)
class Outcome:
    """A generation with its findings."""

    generation: Generation
    findings: Findings  # in the configured unit
    traced: Findings | None  # in the tokens of the trace; None: no trace
    is_right: bool | None  # None: neither a verdict nor a true answer is known
    was_right_before: bool | None  # right answer stated before the onset; None: no loop, or no true answer
    share_well_formed: float | None  # fraction of well-formed lines of chained arithmetic; None: another task

    @cached_property
    def is_loop(self) -> bool:
        return self.findings.is_loop

    @property
    def is_endless(self) -> bool:
        """Whether the text loops or did not stop within its budget."""
        return self.is_loop or self.findings.is_finished is False

    @cached_property
    def secondary(self) -> dict[str, float | None]:
        """Secondary measures, rounded to four digits."""
        share = self.share_well_formed
        return {
            **self.findings.secondary.rounded(),
            "share_well_formed": round(share, 4) if share is not None else None,
        }

    @cached_property
    def kinds(self) -> frozenset[Kind]:
        return frozenset(self.findings.kinds)

    @property
    def wasted_forwards(self) -> float | None:
        """Denoising steps spent on copies only. Without a trace, estimated by their fraction of the canvas."""
        if self.traced is not None:
            return self.traced.wasted_forwards
        generation = self.generation
        if generation.num_canvas is None or generation.num_steps is None:
            return None
        return self.findings.wasted * generation.num_steps / generation.num_canvas


def outcome(generation: Generation, config: LoopConfig) -> Outcome:
    """Detects loops in a generation and judges its answer by the file's verdict, else by the true answer."""
    findings, traced = _detect(generation, config)
    written = findings.units.written
    right = generation.is_right
    if right is None and written is not None and generation.truth is not None:
        right = is_correct(written.text, generation.truth)
    before = None
    main = findings.main
    if findings.is_loop and main is not None and written is not None:
        before = states_answer(written.between(0, main.onset), generation.truth)
    well_formed = None
    if written is not None and generation.prompt is not None:
        well_formed = well_formed_fraction(generation.prompt, reasoning_segment(written.text))
    return Outcome(generation, findings, traced, right, before, well_formed)


def watched(found: Outcome, config: LoopConfig) -> Watched | None:
    """Signals of a generation for the early warning; None without a trace."""
    if found.traced is None or found.generation.steps is None or not len(found.traced.units):
        return None
    units, spans = found.traced.units, []
    if units.written is not None:
        all_sentences = list(sentences(units, config.statement.min_length))
        repeated = revisits(all_sentences, config.statement)
        spans = [(item.start, item.end, other is not None) for item, other in zip(all_sentences, repeated, strict=True)]
    onset = found.traced.temporal_onset if found.traced.is_loop else None
    return watch(units.ids, found.generation.steps, found.generation.entropy, spans, onset, config.warning)


def as_record(found: Outcome) -> dict[str, Any]:
    """Row of records.jsonl: groups by their names, then findings. Positions and lengths are in units."""
    generation, findings, main = found.generation, found.findings, found.findings.main
    timed = found.traced or findings
    return {
        "file": generation.file,
        "number": generation.number,
        **generation.groups,
        "kinds": [str(kind) for kind in findings.kinds],
        "is_loop": findings.is_loop,
        "is_endless": found.is_endless,
        "is_right": found.is_right,
        "num_units": findings.length,  # not "length": groups of that name hold the canvas
        "num_stops": findings.num_stops,
        "is_finished": findings.is_finished,
        "has_answer": findings.has_answer,
        "start": main.start if main else None,
        "onset": main.onset if main else None,
        "onset_fraction": round(main.onset / findings.length, 4) if main else None,
        "period": main.period if main else None,
        "cycles": round(main.cycles, 3) if main else None,
        "mismatches": main.num_mismatches if main else None,
        "coverage": round(findings.coverage, 4),
        "wasted": findings.wasted,
        "wasted_forwards": found.wasted_forwards,
        "is_escaped": findings.is_escaped,
        "is_terminal": findings.is_terminal,
        "is_forced_closure": findings.is_forced_closure,
        "is_self_correction": findings.is_self_correction,
        "is_template": findings.is_template,
        "was_right_before": found.was_right_before,
        "temporal_onset": timed.temporal_onset,
        "temporal_lead": timed.temporal_lead,
        "presets": findings.presets,
        **found.secondary,
        "spans": [
            {"kind": str(span.kind), "start": span.start, "end": span.end, "period": span.period}
            for span in findings.spans
        ],
    }


def _detect(generation: Generation, config: LoopConfig) -> tuple[Findings, Findings | None]:
    known = Known(
        is_finished=generation.is_finished,
        has_answer=True if generation.is_right else None,
        num_canvas=generation.num_canvas if generation.token_ids is not None else None,
        stop_text=generation.stop_text,
    )
    traced = None
    if generation.token_ids is not None:
        traced = detect_tokens(generation.token_ids, generation.tokens, config, known, steps=generation.steps)
        if generation.text is None or (generation.tokens is not None and config.unit is Unit.tokens):
            return traced, traced if generation.steps is not None else None
    assert generation.text is not None
    return detect(generation.text, config, known), traced if generation.steps is not None else None

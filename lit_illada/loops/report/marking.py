"""A text on the report page: its pieces with the copies marked, and its trace as a heat map."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_illada.loops.detect.findings import Findings
from lit_illada.loops.detect.spans import LOOPS, Kind, Span
from lit_illada.loops.detect.words import Written
from lit_illada.loops.outcome import Outcome

_BEFORE, _AFTER = 6_000, 18_000  # characters shown around the onset of a long text
_PLAIN, _FIRST, _COPIES = 0, 1, (2, 3)  # colours: plain, a first copy, later copies alternately
_CHANGED = 4  # added where a copy differs from the one before


def shown(found: Outcome, group: str) -> dict[str, Any]:
    """A text with its marks, in the format of the page's script."""
    generation, findings, main = found.generation, found.findings, found.findings.main
    return {
        "id": f"{generation.file.rpartition('/')[2]}:{generation.number}",
        "group": group,
        "kinds": [str(kind) for kind in findings.kinds],
        "prompt": (generation.prompt or "")[:4000],
        "right": found.is_right,
        "rightBefore": found.was_right_before,
        "length": findings.length,
        "main": None if main is None else {
            "kind": str(main.kind), "onset": main.onset, "period": main.period, "cycles": round(main.cycles, 1),
        },
        "wasted": findings.wasted,
        "how": _how(findings),
        "pieces": pieces(findings),
        "trace": _heat(found),
    }  # fmt: skip


def pieces(findings: Findings) -> list[list[Any]]:
    """[text, mark] of the whole text, or of the part around the onset of a long one."""
    written = findings.units.written
    if written is None:
        return [["(only token ids are known of this text)", _PLAIN]]
    marks = _marks(findings)
    return _around_onset(_joined(written, marks), findings, written)


def _marks(findings: Findings) -> NDArray[np.int64]:
    """The colour of each unit; the main loop comes last, so that no other covers it."""
    ids = findings.units.ids
    marks = np.zeros(len(ids), np.int64)
    main = findings.main
    spans = [span for span in findings.spans if span is not main] + ([main] if main is not None else [])
    for span in spans:
        for start, end in span.originals:
            marks[start:end] = _FIRST
        for number, (start, end) in enumerate(span.copies):
            marks[start:end] = _COPIES[number % 2]
            if span.num_mismatches:
                marks[start:end] += _CHANGED * (ids[start:end] != ids[start - span.period : end - span.period])
    return marks


def _joined(written: Written, marks: NDArray[np.int64]) -> list[list[Any]]:
    if not len(marks):
        return [[written.text, _PLAIN]]
    begins = np.concatenate([[0], np.flatnonzero(np.diff(marks)) + 1])
    places = [0, *(int(written.starts[begin]) for begin in begins[1:]), len(written.text)]
    return [[written.text[places[i] : places[i + 1]], int(marks[begin])] for i, begin in enumerate(begins)]


def _around_onset(parts: list[list[Any]], findings: Findings, written: Written) -> list[list[Any]]:
    if len(written.text) <= _BEFORE + _AFTER:
        return parts
    onset = int(written.starts[findings.main.onset]) if findings.main is not None else 0
    low, high = max(0, onset - _BEFORE), onset + _AFTER
    visible: list[list[Any]] = [[f"… {low:,} characters …\n", _PLAIN]] if low else []
    position = 0
    for text, mark in parts:
        cut = text[max(0, low - position) : max(0, high - position)]
        position += len(text)
        if cut:
            visible.append([cut, mark])
    if position > high:
        visible.append([f"\n… {position - high:,} characters …", _PLAIN])
    return visible


def _how(findings: Findings) -> list[str]:
    properties = {
        "self-correction": findings.is_self_correction,
        "escaped": findings.is_escaped,
        "to the end": findings.is_terminal,
        "forced closure": findings.is_forced_closure,
        "template": findings.is_template,
    }
    return [name for name, holds in properties.items() if holds]


def _heat(found: Outcome) -> dict[str, Any] | None:
    """Step, confidence, entropy and colour of each token, and the bounds of the loops; None without a trace."""
    generation, traced = found.generation, found.traced
    if traced is None or generation.steps is None:
        return None
    num = traced.length
    loops = [span for span in traced.spans if span.kind in (*LOOPS, Kind.circling)]
    return {
        "steps": generation.steps[:num],
        "confidence": _rounded(generation.confidence, num),
        "entropy": _rounded(generation.entropy, num),
        "tokens": generation.tokens[:num] if generation.tokens is not None else None,
        "marks": (_marks(traced) % _CHANGED).tolist(),
        "loops": [_outline(span) for span in loops],
    }


def _outline(span: Span) -> dict[str, Any]:
    return {"start": span.start, "end": span.end, "kind": str(span.kind), "copies": [start for start, _ in span.copies]}


def _rounded(values: list[float] | None, num: int) -> list[float] | None:
    return None if values is None else [round(value, 3) for value in values[:num]]

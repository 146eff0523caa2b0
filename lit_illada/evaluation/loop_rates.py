"""Loops and lengths of generated answers, as figures of an evaluation."""

from collections.abc import Sequence
from dataclasses import fields
from itertools import accumulate
from typing import Any

from lit_illada.evaluation.base import Row
from lit_illada.evaluation.writer import cut_at
from lit_illada.generation.trace import Trace
from lit_illada.loops.detect.findings import Known, detect_tokens


def ended_at(row: Row, stop_texts: Sequence[str]) -> Row:
    """The row as if the model had ended its text before the first stop text; unchanged without one."""
    written = "".join(row["tokens"])
    if not any(text in written for text in stop_texts):
        return row
    end = len(cut_at(written, stop_texts))
    num = sum(position <= end for position in accumulate(map(len, row["tokens"])))
    names = ["tokens", *(field.name for field in fields(Trace))]
    per_token = {name: row[name][:num] for name in names if name in row}
    return {**row, **per_token, "text": cut_at(row["text"], stop_texts), "num_tokens": num, "is_finished": True}


def loop_fields(row: Row, has_answer: bool) -> dict[str, Any]:
    """Loop findings of a row with its trace, detected on the model's own tokens."""
    known = Known(row["is_finished"], has_answer, num_canvas=len(row["token_ids"]), stop_text=row["stop_text"])
    findings = detect_tokens(row["token_ids"], row["tokens"], known=known, steps=row["steps"])
    return {
        "loop_kinds": [kind.value for kind in findings.kinds],
        "is_loop": findings.is_loop,
        "onset": findings.main.onset if findings.main is not None else None,
        "wasted": findings.wasted,
    }


def is_endless(row: Row) -> bool:
    """Whether a text loops or does not stop within its budget; the row has `loop_fields`."""
    return row["is_loop"] or not row["is_finished"]


def loop_rates(rows: Sequence[Row]) -> dict[str, Any]:
    """Fractions of texts and tokens, and the mean length in tokens; the rows have `loop_fields`."""
    num_unfinished = sum(not row["is_finished"] for row in rows)
    return {
        "num_unfinished": num_unfinished,
        "unfinished": num_unfinished / len(rows),
        "looped": sum(row["is_loop"] for row in rows) / len(rows),
        "endless": sum(map(is_endless, rows)) / len(rows),
        "wasted": sum(row["wasted"] for row in rows) / max(1, sum(row["num_tokens"] for row in rows)),
        "mean_tokens": sum(row["num_tokens"] for row in rows) / len(rows),
        "num_forwards": sum(row["num_forwards"] for row in rows),
    }

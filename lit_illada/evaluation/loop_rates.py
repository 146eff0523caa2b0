"""Loops and lengths of generated answers, as figures of an evaluation."""

from collections.abc import Sequence
from typing import Any

from lit_illada.evaluation.base import Row
from lit_illada.loops.detect.findings import Known, detect_tokens


def loop_fields(row: Row, has_answer: bool) -> dict[str, Any]:
    """Loop findings of a row with its trace, detected on the model's own tokens."""
    known = Known(row["is_finished"], has_answer=has_answer, num_canvas=len(row["token_ids"]))
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

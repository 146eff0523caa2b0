"""Traces: step, confidence and entropy of every generated token, as lists and as JSON lines.

This module does not import torch, so that traces can be read without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_illada.runtime.files import iterate_json_lines
from lit_illada.runtime.records import from_record

if TYPE_CHECKING:
    from lit_illada.generation.canvas import Commit


@dataclass(frozen=True)
class Trace:
    """The new tokens of one text from left to right, including a stop token and tokens after it on a fixed canvas."""

    token_ids: list[int]
    """Tokens as last committed."""
    blocks: list[int]
    """Block of each token, from 0."""
    steps: list[int]
    """Denoising step that last committed each token, counted over the whole generation from 0."""
    confidence: list[float]
    """Probability of each token when it was committed."""
    entropy: list[float]
    """Entropy of the model's distribution at that time, nats."""
    num_commits: list[int]
    """Number of commits of each position; above 1 only after remasking."""


class Recorder:
    """Records the traces of a generation: pass it as `on_commit`, then call `traces`."""

    def __init__(self, num_rows: int) -> None:
        self._rows: list[dict[int, tuple[int, int, int, float, float, int]]] = [{} for _ in range(num_rows)]
        self._step = -1

    def __call__(self, commit: Commit) -> None:
        self._step += 1
        is_committed = commit.is_committed
        positions = is_committed.nonzero().tolist()
        columns = (commit.token_ids, commit.confidence, commit.entropy)
        values = zip(*(column[is_committed].tolist() for column in columns), strict=True)
        for (row, column), (token_id, confidence, entropy) in zip(positions, values, strict=True):
            position = column - commit.prompt_length
            num_commits = self._rows[row][position][-1] + 1 if position in self._rows[row] else 1
            self._rows[row][position] = (token_id, commit.block, self._step, confidence, entropy, num_commits)

    def traces(self) -> list[Trace]:
        """One trace per row."""
        ordered = ([row[position] for position in sorted(row)] for row in self._rows)
        return [Trace(*map(list, zip(*row, strict=True))) if row else Trace(*([] for _ in range(6))) for row in ordered]


def write_traces(path: Path, traces: Iterable[tuple[Trace, dict[str, Any]]]) -> None:
    """Writes one JSON line per text: its metadata, then the lists of the trace."""
    with path.open("w", encoding="utf-8") as file:
        for trace, metadata in traces:
            file.write(json.dumps({**metadata, **rounded(asdict(trace))}, ensure_ascii=False) + "\n")


def rounded(trace: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The lists of a trace with confidence and entropy rounded to 6 decimals."""
    return {
        name: [round(x, 6) for x in values] if name in ("confidence", "entropy") else values
        for name, values in trace.items()
    }


def read_traces(path: Path) -> Iterator[tuple[Trace, dict[str, Any]]]:
    """Inverse of `write_traces`. Raises UserError with the line number for an invalid line."""
    names = [field.name for field in fields(Trace)]
    for number, record in iterate_json_lines(path):
        trace = from_record(Trace, record, f"{path}, line {number}")
        yield trace, {name: value for name, value in record.items() if name not in names}

"""When was each token written, and how sure was the model then? Kept as plain lists, and as JSON lines.

Nothing here needs torch: what reads traces may run where there is none.
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
    """One text's new tokens, in the order of their places, with a stop token and what a fixed canvas holds behind it.

    token_ids. blocks: the block each lies in. steps: the denoising step of the whole generation that wrote it last,
    from 0. confidence: the model's probability of it then. entropy: of the model's distribution there and then, nats.
    num_commits: how often the place was written; more than 1 only where tokens are remasked.
    """

    token_ids: list[int]
    blocks: list[int]
    steps: list[int]
    confidence: list[float]
    entropy: list[float]
    num_commits: list[int]


class Recorder:
    """Collects the traces of a generation: give it as `on_commit`, then ask for `traces`."""

    def __init__(self, num_rows: int) -> None:
        self._rows: list[dict[int, tuple[int, int, int, float, float, int]]] = [{} for _ in range(num_rows)]
        self._step = -1

    def __call__(self, commit: Commit) -> None:
        self._step += 1
        is_committed = commit.is_committed
        places = is_committed.nonzero().tolist()
        columns = (commit.token_ids, commit.confidence, commit.entropy)
        values = zip(*(column[is_committed].tolist() for column in columns), strict=True)
        for (row, column), (token_id, confidence, entropy) in zip(places, values, strict=True):
            place = column - commit.prompt_length
            num_commits = self._rows[row][place][-1] + 1 if place in self._rows[row] else 1
            self._rows[row][place] = (token_id, commit.block, self._step, confidence, entropy, num_commits)

    def traces(self) -> list[Trace]:
        """One a row."""
        ordered = ([row[place] for place in sorted(row)] for row in self._rows)
        return [Trace(*map(list, zip(*row, strict=True))) if row else Trace(*([] for _ in range(6))) for row in ordered]


def write_traces(path: Path, traces: Iterable[tuple[Trace, dict[str, Any]]]) -> None:
    """A line for each text: what goes with it (its settings first of all), then the trace's own lists."""
    with path.open("w", encoding="utf-8") as file:
        for trace, about in traces:
            file.write(json.dumps({**about, **rounded(asdict(trace))}, ensure_ascii=False) + "\n")


def rounded(trace: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """A trace's lists with no more digits than are worth their place."""
    return {
        name: [round(x, 6) for x in values] if name in ("confidence", "entropy") else values
        for name, values in trace.items()
    }


def read_traces(path: Path) -> Iterator[tuple[Trace, dict[str, Any]]]:
    """The inverse of `write_traces`. Raises UserError, with the line, for what is no trace."""
    names = [field.name for field in fields(Trace)]
    for number, record in iterate_json_lines(path):
        trace = from_record(Trace, record, f"{path}, line {number}")
        yield trace, {name: value for name, value in record.items() if name not in names}

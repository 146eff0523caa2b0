"""Marks the parts of a text that repeat themselves by design: code in fences, tables, rows of data.

Loop detectors require more copies there or skip the part.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lit_illada.loops.detect.words import Written

_FENCE = re.compile(r"^[^\S\n]*(?:```|~~~).*$", re.MULTILINE)
_ROW = re.compile(
    r"""\s*(?:
        \|.*\|                                                            # Markdown
      | .*&.*\\\\(?:\s*\\\w+)?(?:\[[^]]*\])?                              # LaTeX: cells & cells \\
      | \\(?:hline|toprule|midrule|bottomrule|cline\{.*|cmidrule.*)
      | [\[{(].*[\]})]\s*[,;]?                                            # a row of JSON, of Python, of VALUES
      | "[^"]*"\s*:.*                                                     # a field of JSON
      | [\[\]{}()]+[,;]?
      | (?i:insert\s+into|values|update\s|delete\s+from)\b.*              # SQL
      | <(?:tr|td|th|li|row|item|option)\b.*
      | [^\s,;\t]+(?:[,;\t][^\s,;\t]*){2,}                                # CSV
    )\s*""",
    re.VERBOSE,
)
_MIN_ROWS = 3  # consecutive lines that make a table; blank lines between them do not count


class Loop(Protocol):
    """A stretch of units, of a run or a streak."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def cycles(self) -> float: ...


AnyLoop = TypeVar("AnyLoop", bound=Loop)


@dataclass(frozen=True)
class Structure:
    """Masks over the units of a text; None where the text has no such part."""

    is_code: NDArray[np.bool_] | None  # inside a code fence, closed or not
    is_rigid: NDArray[np.bool_] | None  # inside a closed code fence, a table or rows of data

    def code_share(self, loop: Loop) -> float:
        """Fraction of a loop's units that are code."""
        return _share(self.is_code, loop)

    def rigid_share(self, loop: Loop) -> float:
        """Fraction of a loop's units that are rigid."""
        return _share(self.is_rigid, loop)

    def outside_code(self, loops: Sequence[AnyLoop], min_cycles: float) -> list[AnyLoop]:
        """Loops outside code and tables, and those inside (which repeat by design) of min_cycles or more."""
        return [
            loop
            for loop in loops
            if loop.cycles >= min_cycles or (self.code_share(loop) <= 0.5 and self.rigid_share(loop) <= 0.5)
        ]

    def outside_closed_code(self, loops: Sequence[AnyLoop], min_cycles: float) -> list[AnyLoop]:
        """Loops outside closed code blocks and tables, which repeat with small changes at any length.

        In a block that is not closed, loops of at least min_cycles copies count.
        """
        free = [loop for loop in loops if self.rigid_share(loop) <= 0.5]
        return [loop for loop in free if loop.cycles >= min_cycles or self.code_share(loop) <= 0.5]


def structure(written: Written) -> Structure:
    """The structured parts of a text."""
    text, starts = written.text, written.starts
    fences = [(match.start(), match.end()) for match in _FENCE.finditer(text)]
    closed = [(opened[0], closing[1]) for opened, closing in zip(fences[::2], fences[1::2], strict=False)]
    is_open = len(fences) % 2 == 1
    rigid = [*closed, *_tables(text)]
    return Structure(
        is_code=_mask([*closed, (fences[-1][0], len(text))] if is_open else closed, starts),
        is_rigid=_mask(rigid, starts),
    )


def _tables(text: str) -> list[tuple[int, int]]:
    """(start, end) in characters of at least _MIN_ROWS consecutive rows."""
    found, rows, start, end, position = [], 0, 0, 0, 0
    for line in text.split("\n"):
        if line and not line.isspace():
            if _ROW.fullmatch(line):
                start, rows = (start, rows + 1) if rows else (position, 1)
                end = position + len(line)
            else:
                if rows >= _MIN_ROWS:
                    found.append((start, end))
                rows = 0
        position += len(line) + 1
    return [*found, (start, end)] if rows >= _MIN_ROWS else found


def _share(mask: NDArray[np.bool_] | None, loop: Loop) -> float:
    return float(mask[loop.start : loop.end].mean()) if mask is not None and loop.end > loop.start else 0.0


def _mask(parts: list[tuple[int, int]], starts: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    if not parts:
        return None
    mask = np.zeros(len(starts), bool)
    for low, high in parts:
        first, last = np.searchsorted(starts, (low, high))
        mask[first:last] = True
    return mask

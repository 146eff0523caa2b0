"""Sudoku on a 4 × 4 grid. All 288 grids are enumerated, and the splits are made of grids, not of puzzles.

A split by puzzle would share grids between training and test: the puzzles of one grid differ in their empty cells only.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, permutations
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lit_illada.errors import require
from lit_illada.runtime.counter_rng import uniform
from lit_illada.tasks.answers import marked_answer
from lit_illada.tasks.base import Problem, Split, Task, Verdict, draw_split, require_num

_WORDING = (
    "Fill the empty cells (0) with 1 to 4 so that every row, column and 2 x 2 block has each number once. "
    "Give the four rows between <answer> and </answer>.\n{question}"
)
_CELLS = 16
_CHUNK = 1024  # puzzles drawn at a time
_KEY = 4  # of the random draws
_GAP = r"[ \t\r\n|,;+-]"
_RUN = re.compile(rf"[0-9](?:{_GAP}*+[0-9])*+")
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")


@dataclass(frozen=True)
class Sudoku4(Task):
    """Puzzles with one solution; the difficulty is the number of empty cells."""

    difficulty_name: ClassVar[str] = "empty_cells"

    wording: str = _WORDING
    """Text of the prompt around the question."""
    min_empty: int = 6
    """Empty cells of the easiest puzzles."""
    max_empty: int = 10
    """Empty cells of the hardest puzzles, at most 12: fewer than four given cells never determine a grid."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_range = 1 <= self.min_empty <= self.max_empty <= 12
        require(is_range, "min_empty, max_empty", f"{self.min_empty}, {self.max_empty}", "rising within 1 … 12")

    def problems(self, split: Split, num: int | None = None) -> list[Problem]:
        chosen = draw_split(
            self._puzzles(),
            lambda puzzle: puzzle.solution,
            split,
            require_num(num, self),
            self.held_out_fraction,
            where="sudoku4",
            hint="raise max_empty, or request fewer",
            distinct_by=lambda puzzle: puzzle.given,
        )
        return [
            Problem(
                question=_in_rows(puzzle.given),
                reference=puzzle.solution,
                difficulty=puzzle.given.count("0"),
                origin=f"{split} problem {index}",
                answer=f"<answer>\n{_in_rows(puzzle.solution)}\n</answer>",
            )
            for index, puzzle in chosen.items()
        ]

    def check(self, problem: Problem, completion: str) -> Verdict:
        """Also gives partial credit: the fraction of the empty cells that are right, if no given cell is changed."""
        digits = _digits(completion)
        if digits is None:
            return Verdict.wrong(None, f"the completion has no grid of {_CELLS} digits")
        given, answer = problem.question.replace("\n", ""), _in_rows(digits)
        if any(cell not in ("0", digit) for cell, digit in zip(given, digits, strict=True)):
            return Verdict.wrong(answer, "a given cell is changed")
        if digits == problem.reference:
            return Verdict.right(answer)
        are_right = [a == b for a, b, cell in zip(digits, problem.reference, given, strict=True) if cell == "0"]
        reason = f"{sum(are_right)} of {len(are_right)} empty cells are right"
        return Verdict.wrong(answer, reason, sum(are_right) / len(are_right))

    def _puzzles(self) -> Iterator[tuple[int, "_Puzzle | None"]]:
        """(index, puzzle) of an endless sequence; None where the puzzle has several solutions."""
        all_grids = grids()
        for chunk in count():
            counters = np.arange(chunk * _CHUNK * (2 + _CELLS), (chunk + 1) * _CHUNK * (2 + _CELLS))
            draws = uniform(counters, self.seed, _KEY).reshape(_CHUNK, 2 + _CELLS)
            num_empty = self.min_empty + (draws[:, 1] * (self.max_empty - self.min_empty + 1)).astype(int)
            ranks = draws[:, 2:].argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
            solutions = all_grids[(draws[:, 0] * len(all_grids)).astype(int)]
            given = np.where(ranks < num_empty[:, None], 0, solutions)
            for row in range(_CHUNK):
                is_unique = ((all_grids == given[row]) | (given[row] == 0)).all(axis=1).sum() == 1
                puzzle = _Puzzle(_text(given[row]), _text(solutions[row])) if is_unique else None
                yield chunk * _CHUNK + row, puzzle


@dataclass(frozen=True)
class _Puzzle:
    """Two grids as 16 digits, row by row."""

    given: str
    """0 for an empty cell."""
    solution: str


@cache
def grids() -> NDArray[np.int64]:
    """(288, 16): all complete grids, row by row, in lexicographic order."""
    partial: list[tuple[tuple[int, ...], ...]] = [()]
    for _ in range(4):
        extended = [(*above, row) for above in partial for row in permutations((1, 2, 3, 4))]
        partial = [rows for rows in extended if _is_consistent(rows)]
    return np.array(partial).reshape(-1, _CELLS)


def _is_consistent(rows: Sequence[tuple[int, ...]]) -> bool:
    """Whether no column and no complete block of the first rows repeats a number."""
    columns = [set(column) for column in zip(*rows, strict=True)]
    pairs = zip(rows[::2], rows[1::2], strict=False)
    blocks = [{*upper[c : c + 2], *lower[c : c + 2]} for upper, lower in pairs for c in (0, 2)]
    return all(len(column) == len(rows) for column in columns) and all(len(block) == 4 for block in blocks)


def _digits(completion: str) -> str | None:
    """The 16 digits of the answer; without a mark, those of the last part of the text that has exactly 16."""
    marked = marked_answer(completion)
    parts = _BLANK_LINE.split(completion) if marked is None else [marked]
    runs = [re.sub(_GAP, "", run) for part in parts for run in _RUN.findall(part)]
    return next((run for run in reversed(runs) if len(run) == _CELLS), None)


def _text(grid: NDArray[np.int64]) -> str:
    return "".join(map(str, grid.tolist()))


def _in_rows(digits: str) -> str:
    return "\n".join(digits[start : start + 4] for start in range(0, _CELLS, 4))

"""Tasks whose problems are read from JSON-lines files."""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_illada.errors import require
from lit_illada.tasks.base import Problem, Split, Task, TooFewProblemsError, split_of
from lit_illada.tasks.items import rows


@dataclass(frozen=True)
class FileTask(Task):
    """Problems in the order of their file; a hash of the question assigns them to the splits.

    With a test file, the test split is that file, and `path` has a validation part and a training part, both without
    the questions of the test file.
    """

    path: str = ""
    """File of problems, one JSON object per line."""
    test_path: str | None = None
    """File of the test split; None: a part of `path`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.path), "path", "empty", "a file of problems, one JSON object per line")

    @abstractmethod
    def read_row(self, row: dict[str, Any], origin: str) -> Problem:
        """The problem of one line. Raises UserError, which names `origin`, where the line has none."""

    def problems(self, split: Split, num: int | None = None) -> list[Problem]:
        if self.test_path is None:
            chosen = [p for p in self._read(self.path) if split_of(p.question, self.held_out_fraction) == split]
        else:
            chosen = self._read(self.test_path)
            if split != Split.TEST:
                tested, is_validation = {problem.question for problem in chosen}, split == Split.VALIDATION
                chosen = [p for p in self._read(self.path) if p.question not in tested]
                chosen = [p for p in chosen if self._is_validation(p) == is_validation]
        if split != Split.TRAIN:
            unique: dict[str, Problem] = {}
            for problem in chosen:
                unique.setdefault(problem.question, problem)
            chosen = list(unique.values())
        if len(chosen) < (1 if num is None else num):
            raise TooFewProblemsError(
                f"{self.path}: only {len(chosen)} of {num or 1} {split} problems; request fewer, or change "
                f"held_out_fraction={self.held_out_fraction:g}",
                len(chosen),
            )
        return chosen[:num]

    def _is_validation(self, problem: Problem) -> bool:
        return split_of(problem.question, self.held_out_fraction) is Split.VALIDATION

    def _read(self, path: str) -> list[Problem]:
        return [self.read_row(row, f"{path}:{line}") for line, row in rows(Path(path), None)]

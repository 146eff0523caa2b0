"""The verifiable tasks by name."""

from lit_illada.tasks.arithmetic import Arithmetic
from lit_illada.tasks.base import Task
from lit_illada.tasks.countdown import Countdown
from lit_illada.tasks.sudoku4 import Sudoku4

TASKS: dict[str, type[Task]] = {"arithmetic": Arithmetic, "countdown": Countdown, "sudoku4": Sudoku4}

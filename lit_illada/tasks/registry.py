"""The verifiable tasks by name."""

from lit_illada.tasks.arithmetic import Arithmetic
from lit_illada.tasks.base import Task

TASKS: dict[str, type[Task]] = {"arithmetic": Arithmetic}

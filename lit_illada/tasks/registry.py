"""The verifiable tasks by name."""

from lit_illada.tasks.base import Task
from lit_illada.tasks.mixture import SINGLE_TASKS, Mixture

TASKS: dict[str, type[Task]] = {**SINGLE_TASKS, "mixture": Mixture}

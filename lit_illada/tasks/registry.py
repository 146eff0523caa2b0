"""The verifiable tasks by name."""

from lit_illada.tasks.arithmetic import Arithmetic
from lit_illada.tasks.base import Task
from lit_illada.tasks.choices import Choices
from lit_illada.tasks.code import Code
from lit_illada.tasks.countdown import Countdown
from lit_illada.tasks.gsm8k import Gsm8k
from lit_illada.tasks.gym import ReasoningGym
from lit_illada.tasks.math import Math
from lit_illada.tasks.sudoku4 import Sudoku4

TASKS: dict[str, type[Task]] = {
    "arithmetic": Arithmetic,
    "countdown": Countdown,
    "sudoku4": Sudoku4,
    "gsm8k": Gsm8k,
    "math": Math,
    "choices": Choices,
    "code": Code,
    "reasoning_gym": ReasoningGym,
}

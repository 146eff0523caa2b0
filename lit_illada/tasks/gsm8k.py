"""GSM8K (arXiv 2110.14168): word problems whose answer is one number."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from lit_illada.errors import UserError
from lit_illada.tasks.answers import final_number
from lit_illada.tasks.base import Problem, Verdict
from lit_illada.tasks.files import FileTask
from lit_illada.tasks.items import field, shown, text_field
from lit_illada.tasks.references import judge_number


@dataclass(frozen=True)
class Gsm8k(FileTask):
    """Lines {"question": …, "answer": "steps #### number"}; the difficulty is the number of steps."""

    difficulty_name: ClassVar[str] = "steps"

    wording: str = "{question}\nGive the final answer after ####."
    """Text of the prompt around the question."""

    def read_row(self, row: dict[str, Any], origin: str) -> Problem:
        answer = field(origin, row, "answer")
        number = final_number(str(answer)) if isinstance(answer, str | int | float) else None
        if number is None:
            raise UserError(f"{origin}: no number in answer {shown(answer)}")
        solution, mark, _ = str(answer).rpartition("####")
        steps = re.sub(r"<<.*?>>", "", solution).strip() if mark else ""
        return Problem(
            question=text_field(origin, row, "question"),
            reference=str(number),
            difficulty=len(steps.splitlines()),
            origin=origin,
            solution=steps,
            answer=f"#### {number}",
        )

    def check(self, problem: Problem, completion: str) -> Verdict:
        return judge_number(completion, Fraction(problem.reference))

"""MATH (arXiv 2103.03874) and MATH-500: problems whose answer is an expression in a box."""

import importlib.util
from dataclasses import dataclass
from typing import Any, ClassVar

from lit_illada.errors import UserError, require
from lit_illada.runtime.guard import CallError, call
from lit_illada.tasks.answers import announced_clauses, boxed_answer
from lit_illada.tasks.base import Problem, Verdict
from lit_illada.tasks.files import FileTask
from lit_illada.tasks.items import text_field
from lit_illada.tasks.latex import are_equal


@dataclass(frozen=True)
class Math(FileTask):
    r"""Lines {"problem": …, "solution": …}, with the answer in the solution's last \boxed{} or in a field `answer`.

    The difficulty is the level, 1 to 5; 0 where the line has none.
    """

    difficulty_name: ClassVar[str] = "level"

    wording: str = "{question}\nPut the final answer in \\boxed{}."
    """Text of the prompt around the question."""
    use_math_verify: bool = False
    """Whether math-verify (extra `math`) may find an answer equal that differs from the reference as a text."""
    time_limit_s: float = 5.0
    """Seconds for one comparison by math-verify; an answer that takes longer is wrong."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.time_limit_s > 0, "time_limit_s", self.time_limit_s, "above 0")
        if self.use_math_verify and importlib.util.find_spec("math_verify") is None:
            raise UserError("use_math_verify=true needs a package: pip install 'lit-illada[math]'")

    def read_row(self, row: dict[str, Any], origin: str) -> Problem:
        solution = text_field(origin, row, "solution")
        answer = str(row["answer"]) if "answer" in row else boxed_answer(solution)
        if answer is None or not answer.strip():
            raise UserError(f"{origin}: no field 'answer', and no \\boxed{{}} in the solution")
        level = str(row.get("level", "")).removeprefix("Level").strip()
        return Problem(
            question=text_field(origin, row, "problem"),
            reference=answer,
            difficulty=int(level) if level.isdecimal() else 0,
            origin=origin,
            solution=solution,
            answer=f"\\boxed{{{answer}}}",
        )

    def check(self, problem: Problem, completion: str) -> Verdict:
        """Reads the last box, else the last announced answer; a box that is cut off is no answer."""
        answer = boxed_answer(completion)
        if answer is None and "\\boxed" not in completion:
            answer = next(announced_clauses(completion), None)
        if answer is None or not answer.strip():
            return Verdict.wrong(None, "the completion has no \\boxed{} and announces no answer")
        if are_equal(answer, problem.reference):
            return Verdict.right(answer)
        reason = f"expected {problem.reference}"
        if self.use_math_verify:
            try:
                arguments = [problem.reference, answer]
                if call("lit_illada.tasks.math:verify", arguments, self.time_limit_s, "math_verify"):
                    return Verdict.right(answer)
            except CallError as error:
                reason += f"; math-verify: {error}"
        return Verdict.wrong(answer, reason)


def verify(reference: str, answer: str) -> bool:
    """Whether math-verify finds two answers equal. Run in a subprocess, which bounds its time."""
    from math_verify import parse, verify

    gold, given = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (reference, answer))
    return bool(verify(gold, given, timeout_seconds=None))

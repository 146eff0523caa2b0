"""Programming problems of HumanEval (arXiv 2107.03374) and MBPP (arXiv 2108.07732), judged by their tests.

The checker executes the completion, so the task exists only with `allow_execution`. See `sandbox.py` for its limits.
"""

import re
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

from lit_illada.errors import UserError, require
from lit_illada.tasks.base import Problem, Verdict
from lit_illada.tasks.files import FileTask
from lit_illada.tasks.items import field as value_of
from lit_illada.tasks.items import shown, text_field
from lit_illada.tasks.sandbox import Limits, run

_FENCED = re.compile(r"```[a-zA-Z0-9]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_BODY_END = re.compile(r"^(?=[^\s#])", re.MULTILINE)


@dataclass(frozen=True)
class Code(FileTask):
    """HumanEval's lines (prompt, entry_point, test) or MBPP's (text or prompt, test_list).

    The difficulty is the number of assertions.
    """

    difficulty_name: ClassVar[str] = "tests"

    allow_execution: bool = field(default=False, metadata={"needs_permission": True})
    """Run completions on this machine; must be true, set by you rather than by a saved config."""
    cpu_limit_s: int = 5
    """Processor seconds of one completion."""
    wall_limit_s: float = 30.0
    """Seconds of one completion."""
    memory_limit_mb: int = 1024
    """MiB of address space of one completion."""
    file_limit_mb: int = 1
    """MiB of a file that a completion writes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.allow_execution:
            raise UserError("allow_execution is false: the task `code` runs what the model writes; allow it with true")
        for name in ("cpu_limit_s", "wall_limit_s", "memory_limit_mb", "file_limit_mb"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")

    def read_row(self, row: dict[str, Any], origin: str) -> Problem:
        return _human_eval(row, origin) if "entry_point" in row else _mbpp(row, origin)

    def check(self, problem: Problem, completion: str) -> Verdict:
        program = _program(completion, problem.reference)
        if program is None:
            return Verdict.wrong(None, "the completion has no code")
        limits = Limits(self.cpu_limit_s, self.wall_limit_s, self.memory_limit_mb, self.file_limit_mb)
        reason = run(f"{program}\n\n{problem.reference['test']}\n", limits)
        return Verdict.right(program) if reason is None else Verdict.wrong(program, reason)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k samples is correct (arXiv 2107.03374, equation 1).

    1 − C(n − c, k) / C(n, k) for c correct ones of n samples. Raises UserError for k above n.
    """
    require(1 <= k <= num_samples, "k", k, f"in 1 … {num_samples}, the number of samples")
    require(0 <= num_correct <= num_samples, "num_correct", num_correct, f"in 0 … {num_samples}")
    if num_samples - num_correct < k:
        return 1.0
    return 1.0 - prod(1.0 - k / n for n in range(num_samples - num_correct + 1, num_samples + 1))


def _human_eval(row: dict[str, Any], origin: str) -> Problem:
    prompt, entry_point = text_field(origin, row, "prompt"), text_field(origin, row, "entry_point")
    if not entry_point.isidentifier():
        raise UserError(f"{origin}: entry_point must be a function's name; got {shown(entry_point)}")
    test = f"{text_field(origin, row, 'test')}\ncheck({entry_point})"
    solution = row.get("canonical_solution")
    return Problem(
        question=prompt,
        reference={"prompt": prompt, "entry_point": entry_point, "test": test},
        difficulty=test.count("assert"),
        origin=origin,
        answer=f"```python\n{prompt}{solution}\n```" if isinstance(solution, str) else "",
    )


def _mbpp(row: dict[str, Any], origin: str) -> Problem:
    tests = value_of(origin, row, "test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise UserError(f"{origin}: test_list must be a list of texts, not empty; got {shown(tests)}")
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
    text = text_field(origin, row, "text" if "text" in row else "prompt")
    listed = "\n".join(tests)
    solution = row.get("code")
    return Problem(
        question=f"{text}\nYour code should pass these tests:\n{listed}",
        reference={"prompt": "", "entry_point": None, "test": f"{setup}\n{listed}"},
        difficulty=len(tests),
        origin=origin,
        answer=f"```python\n{solution}\n```" if isinstance(solution, str) else "",
    )


def _program(completion: str, reference: dict[str, Any]) -> str | None:
    """The code to test: that of the first fenced block, else the whole completion; None where it is empty.

    Where it does not define the function of the prompt, it continues the prompt, as far as it is indented.
    """
    fenced = _FENCED.search(completion)
    code = fenced[1] if fenced else completion
    if not code.strip():
        return None
    prompt, entry_point = reference["prompt"], reference["entry_point"]
    if entry_point is None:
        return code
    definition = re.compile(rf"^[ \t]*(?:async )?def {entry_point}\b", re.MULTILINE)
    if definition.search(code):
        start = definition.search(prompt)
        return f"{prompt[: start.start()] if start else ''}\n{code}"
    end = _BODY_END.search(code, 1)
    return prompt + (code[: end.start()] if end else code)

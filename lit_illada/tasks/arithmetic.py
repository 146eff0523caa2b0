"""Chained arithmetic modulo a small number: problems with a computed answer, their reasoning and its format check.

    f=3+1                                the question: x is the result of the previous line
    g=x+2
    x mod 2?
    f=3+1=0                              the reasoning: one line per step, with the value of x inserted
    g=0+2=0
    0                                    the answer

`chains` has the questions, `traces` the reasoning. A hash of the question assigns a problem to training, validation or
test, so that these are disjoint for any ranges.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from lit_illada.tasks.base import Problem, Split, Task, Verdict, draw_split, require_num
from lit_illada.tasks.chains import ProblemRange, all_chains
from lit_illada.tasks.references import judge_exact
from lit_illada.tasks.traces import check_traces, draw_traces


@dataclass(frozen=True)
class Arithmetic(Task):
    """Chained arithmetic with computed answers; the difficulty is the number of steps."""

    difficulty_name: ClassVar[str] = "depth"

    operations: str = "+"
    """Operations, drawn uniformly from these characters (+ - *)."""
    range: ProblemRange = field(default_factory=ProblemRange)
    """Difficulty of the problems."""
    recheck_fraction: float = 0.0
    """Fraction ρ of reference solutions that re-check one to three steps, at most half of all steps."""
    slip_fraction: float = 0.0
    """Fraction of the re-checks that correct a wrong result."""
    min_recheck_depth: int = 1
    """Chains with fewer steps are never re-checked."""
    retry_fraction: float = 0.0
    """Probability that a statement of a step is wrong; it is then re-checked and stated anew. Needs
    recheck_fraction=0."""
    min_retry_number: int = 0
    """Only steps with a number of at least this size in the question are retried."""
    max_retries: int = 6
    """Most wrong statements of a solution, 1 to 24; a step has at most one for each wrong result."""
    retry_sentence: bool = True
    """Whether "Wait, let me check again." stands between a wrong statement and the next one; false is a control."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_traces(self)

    def problems(self, split: Split, num: int | None = None) -> list[Problem]:
        chains = draw_split(
            all_chains(self.range, self.operations, self.seed),
            lambda chain: chain.question,
            split,
            require_num(num, self),
            self.held_out_fraction,
            where="chained arithmetic",
            hint="the range is too small; raise its depth, operands or digits, or request fewer",
        )
        solutions = draw_traces(chains, self, self.seed)
        return [
            Problem(
                question=chain.question,
                reference=chain.answer,
                difficulty=len(chain.steps),
                origin=f"{split} problem {index}",
                solution="\n".join(lines),
                answer=chain.answer,
            )
            for (index, chain), lines in zip(chains.items(), solutions, strict=True)
        ]

    def check(self, problem: Problem, completion: str) -> Verdict:
        return judge_exact(completion, problem.reference)

"""Conversations about chained arithmetic."""

from lit_illada.data.sft.chat_template import Message, Role
from lit_illada.data.sft.config import ReasoningSource
from lit_illada.data.sft.instruction import Example
from lit_illada.tasks.arithmetic import Portion, ProblemRange, draw_problems, draw_reasoning


def make_examples(
    source: ReasoningSource, difficulty: ProblemRange, portion: Portion, num: int, held_out_fraction: float
) -> list[Example]:
    """`num` examples of a range whose problems belong to `portion`, with reasoning as the source says.

    Raises UserError where the range has too few problems.
    """
    problems = draw_problems(
        difficulty, source.operations, portion, num, seed=source.seed, held_out_fraction=held_out_fraction
    )
    reasoning = draw_reasoning(
        problems,
        seed=source.seed,
        recheck_fraction=source.recheck_fraction,
        slip_fraction=source.slip_fraction,
        min_recheck_depth=source.min_recheck_depth,
    )
    return [
        Example(
            (Message(Role.USER, problem.question), Message(Role.ASSISTANT, problem.answer, "\n".join(lines))),
            f"{portion} problem {index}",
            problem.answer,
        )
        for (index, problem), lines in zip(problems.items(), reasoning, strict=True)
    ]

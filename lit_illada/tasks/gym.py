"""Problems of reasoning-gym (extra `gym`): any of its generators by name, with its own parameters and scorer.

Generators and scorers are another project's code, some of which can compute for long on odd answers. Both run in a
subprocess, scorers with a time limit.
"""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

from lit_illada.errors import UserError, require
from lit_illada.runtime.guard import CallError, call
from lit_illada.tasks.answers import marked_answer
from lit_illada.tasks.base import Problem, Split, Task, Verdict, draw_split, require_num

_MODULE = "lit_illada.tasks.gym"
_SIZE = 10**9  # problems of a generator; each is a function of the seed and its index
_CHUNK = 50  # problems per call
_GENERATION_LIMIT_S = 600.0  # of a chunk


@dataclass(frozen=True)
class ReasoningGym(Task):
    """Problems of one generator; their difficulty is 1, since every generator has parameters of its own."""

    difficulty_name: ClassVar[str] = "generator"

    wording: str = "{question}\nGive the answer between <answer> and </answer>."
    """Text of the prompt around the question."""
    generator: str = "chain_sum"
    """Name of a data set of reasoning-gym."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Parameters of the generator; those not given have its defaults."""
    time_limit_s: float = 10.0
    """Seconds to score one answer; one that takes longer is wrong."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.time_limit_s > 0, "time_limit_s", self.time_limit_s, "above 0")
        require(not set(self.parameters) & {"seed", "size"}, "parameters", self.parameters, "without seed and size")
        if importlib.util.find_spec("reasoning_gym") is None:
            raise UserError("the task reasoning_gym needs a package: pip install 'lit-illada[gym]'")

    def problems(self, split: Split, num: int | None = None) -> list[Problem]:
        entries = draw_split(
            self._entries(),
            lambda entry: entry["question"],
            split,
            require_num(num, self),
            self.held_out_fraction,
            where=f"reasoning_gym, generator {self.generator}",
            hint="change its parameters, or request fewer",
        )
        return [
            Problem(
                question=entry["question"],
                reference=[self.seed, index],
                difficulty=1.0,
                origin=f"{split} problem {index}",
                answer=f"<answer>{entry['answer']}</answer>" if isinstance(entry["answer"], str) else "",
            )
            for index, entry in entries.items()
        ]

    def check(self, problem: Problem, completion: str) -> Verdict:
        """Scores the last box or <answer>, else the whole completion; correct from a score of 1."""
        marked = marked_answer(completion)
        answer = completion.strip() if marked is None else marked
        if not answer:
            return Verdict.wrong(None, "the completion has no answer")
        seed, index = problem.reference
        arguments = [self.generator, json.dumps(self.parameters), seed, index, answer]
        try:
            score = call(f"{_MODULE}:score", arguments, self.time_limit_s, "reasoning_gym")
        except CallError as error:
            return Verdict.wrong(answer, f"the scorer {error}")
        if score >= 1:
            return Verdict.right(answer)
        return Verdict.wrong(answer, f"scored {score:g} of 1", max(0.0, float(score)))

    def _entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        start = 0
        while True:
            arguments = [self.generator, json.dumps(self.parameters), self.seed, start, _CHUNK]
            try:
                entries = call(f"{_MODULE}:generate", arguments, _GENERATION_LIMIT_S, "reasoning_gym")
            except CallError as error:
                raise UserError(f"reasoning_gym, generator {self.generator}: {error}") from error
            yield from enumerate(entries, start)
            start += _CHUNK


def generate(name: str, parameters: str, seed: int, start: int, num: int) -> list[dict[str, Any]]:
    """Question and answer of `num` problems. Run in a subprocess."""
    dataset = _dataset(name, parameters, seed)
    return [{key: dataset[index][key] for key in ("question", "answer")} for index in range(start, start + num)]


def score(name: str, parameters: str, seed: int, index: int, answer: str) -> float:
    """The generator's score of an answer to a problem. Run in a subprocess."""
    dataset = _dataset(name, parameters, seed)
    return float(dataset.score_answer(answer, entry=dataset[index]))


@cache
def _dataset(name: str, parameters: str, seed: int) -> Any:
    from reasoning_gym import create_dataset

    return create_dataset(name, seed=seed, size=_SIZE, **json.loads(parameters))

"""Test problems of a verifiable task: the model generates completions, which the task checks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from rich.table import Table

from lit_illada.errors import UserError, unknown
from lit_illada.evaluation.base import LoadedModel, Progress, Result, Row, percent_with_interval, proportion, write_rows
from lit_illada.evaluation.loop_rates import ended_at, loop_fields, loop_rates
from lit_illada.evaluation.writer import Written, cut_at
from lit_illada.runtime import plugins
from lit_illada.runtime.console import Console
from lit_illada.schema import choice, choice_name, from_tree
from lit_illada.scoring.config import Chat
from lit_illada.tasks.base import Problem, Split, Task, Verdict, judged, requested
from lit_illada.tasks.code import pass_at_k
from lit_illada.tasks.files import FileTask
from lit_illada.tasks.registry import TASKS

NUM_GENERATED = 128
"""Problems of a generated task unless score.limit is set."""


@dataclass(frozen=True)
class _Choice:
    task: Task = choice(TASKS, "arithmetic")


def names_task(text: str) -> bool:
    """Whether a text names a task rather than a file: `countdown`, `my_task.py:MyTask` or {name: countdown, …}."""
    return text in TASKS or text.lstrip().startswith("{") or plugins.is_plugin(text)


def read_task(text: str) -> Task:
    """The task that a text on the command line describes: a name, or a YAML mapping of a name and settings.

    Raises UserError for an unknown name or setting.
    """
    tree: Any = text
    if text.lstrip().startswith("{"):
        try:
            tree = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--task {text}: not a mapping such as {{name: countdown, max_number: 20}}") from error
        if isinstance(tree, dict) and isinstance(tree.get("name"), str) and not names_task(tree["name"]):
            raise unknown("task", tree["name"], TASKS)
    plugins.allow(tree)
    return from_tree(_Choice, {"task": tree}).task


@dataclass(frozen=True)
class TaskProblems:
    """The evaluation of one task."""

    name: str
    """The task as requested, for messages and the result."""
    task: Task
    problems: Sequence[Problem]
    items_file: str
    """Name of the file written with one row per completion."""
    num_samples: int = 1
    """Completions per problem."""

    @classmethod
    def read(cls, name: str, limit: int | None, items_file: str, num_samples: int = 1) -> "TaskProblems":
        """Reads or generates the test problems.

        limit: their number; None: all of a file, or NUM_GENERATED of a generated task. Raises UserError for too few,
        and for a task whose check raises, before anything is generated.
        """
        task = read_task(name)
        default = None if isinstance(task, FileTask) else NUM_GENERATED
        problems = requested(task, Split.TEST, "score.limit", limit, default)
        judged(task, problems[0], problems[0].answer)
        return cls(name, task, problems, items_file, num_samples)

    def check(self, model: LoadedModel) -> None:
        """Raises UserError for a prompt that leaves too few positions, and for samples that would all be equal."""
        if self.num_samples > 1 and model.config.generation.temperature == 0:
            raise UserError(
                f"--samples {self.num_samples} needs completions that differ: set generation.temperature above 0"
            )
        max_new_tokens = model.config.generation.max_new_tokens
        for problem in self.problems:
            free = model.scorer.positions_after(self.task.prompt(problem))
            if free < max_new_tokens:
                raise UserError(
                    f"{self.name}, {problem.origin}: the prompt leaves {free} of the model's "
                    f"{model.scorer.model.max_length} positions, but generation.max_new_tokens is {max_new_tokens}"
                )

    def run(self, model: LoadedModel, folder: Path, progress: Progress) -> "TaskResult":
        problems = [problem for problem in self.problems for _ in range(self.num_samples)]
        on_work = progress(self.name, len(problems))
        prompts = [model.scorer.encode_prompt(self.task.prompt(problem)) for problem in problems]
        rows: list[Row] = []
        for problem, written in zip(problems, model.writer.write(prompts, is_traced=True), strict=True):
            verdict = judged(self.task, problem, _completion(model, written))
            row = ended_at(self._row(problem, verdict, model, written), _stop_texts(model))
            rows.append(row | loop_fields(row, has_answer=verdict.answer is not None))
            on_work(1)
        write_rows(folder / self.items_file, rows)
        levels = sorted({row["difficulty"] for row in rows})
        by_level = {level: [row for row in rows if row["difficulty"] == level] for level in levels}
        return TaskResult(
            kind="task",
            file=choice_name(TASKS, self.task),
            task=self.name,
            difficulty=self.task.difficulty_name,
            num_items=len(self.problems),
            num_samples=self.num_samples,
            num_without_answer=sum(row["answer"] is None for row in rows),
            **self._figures(rows),
            **loop_rates(rows),
            levels={f"{level:g}": self._figures(group) for level, group in by_level.items()},
            items=self.items_file,
        )

    def _figures(self, rows: Sequence[Row]) -> dict[str, Any]:
        """rows: all samples of each problem in sequence."""
        n = self.num_samples
        mean_score = sum(row["score"] for row in rows) / len(rows)
        if n == 1:
            return {**proportion([row["is_correct"] for row in rows]), "mean_score": mean_score}
        correct = [sum(row["is_correct"] for row in rows[start : start + n]) for start in range(0, len(rows), n)]
        pass_at = {f"pass_at_{k}": fmean(pass_at_k(n, num, k) for num in correct) for k in _powers(n)}
        return {"accuracy": pass_at["pass_at_1"], **pass_at, "mean_score": mean_score}

    def _row(self, problem: Problem, verdict: Verdict, model: LoadedModel, written: Written) -> Row:
        return {
            "origin": problem.origin,
            "difficulty": problem.difficulty,
            "prompt": problem.question,
            "text": model.writer.tokenizer.decode(written.token_ids),
            "truth": json.loads(json.dumps(problem.reference, default=str)),
            "answer": verdict.answer,
            "is_correct": verdict.correct,
            "score": verdict.score,
            "reason": verdict.reason,
            **model.writer.details(written),
        }


class TaskResult(Result):
    """Accuracy, or pass@k of several samples, and mean score, of all problems and by difficulty."""

    def show(self) -> None:
        passes = [name for name in self if name.startswith("pass_at_")]
        table = Table(title=f"{self['file']}: {self['num_items']} problems", title_justify="left")
        columns = [name.replace("pass_at_", "pass@") for name in passes] or ["right, 95 % interval"]
        for heading in (self["difficulty"].replace("_", " "), *columns, "mean score"):
            table.add_column(heading, justify="right")
        levels = self["levels"] if len(self["levels"]) > 1 else {}
        for level, figures in {**levels, "all": self}.items():
            cells = [f"{100 * figures[name]:.1f} %" for name in passes] or [percent_with_interval(figures)]
            table.add_row(level, *cells, f"{figures['mean_score']:.3f}")
        Console().print(table)


def _completion(model: LoadedModel, written: Written) -> str:
    """What the task checks: the answer of a chat model, without its reasoning, or the text before a stop text."""
    if isinstance(model.config.score.wording, Chat):
        return model.template.read(written.token_ids).answer
    return cut_at(model.writer.tokenizer.decode(written.token_ids), _stop_texts(model))


def _stop_texts(model: LoadedModel) -> list[str]:
    """Texts that end an answer; a chat model's answer ends by its template alone."""
    wording = model.config.score.wording
    return [] if isinstance(wording, Chat) else wording.stop_texts


def _powers(most: int) -> list[int]:
    """1, 2, 4, … up to `most`, and `most`."""
    return sorted({2**exponent for exponent in range(most.bit_length())} | {most})

"""Test problems of a verifiable task: the model generates completions, which the task checks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from lit_illada.errors import UserError, unknown
from lit_illada.evaluation.base import LoadedModel, Progress, Result, Row, percent_with_interval, proportion, write_rows
from lit_illada.evaluation.writer import Written, cut_at
from lit_illada.runtime import plugins
from lit_illada.runtime.console import Console
from lit_illada.schema import choice, choice_name, from_tree
from lit_illada.scoring.config import Chat
from lit_illada.tasks.base import Problem, Split, Task, Verdict
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
    """Name of the file written with one row per problem."""

    @classmethod
    def read(cls, name: str, limit: int | None, items_file: str) -> "TaskProblems":
        """Reads or generates the test problems.

        limit: their number; None: all of a file, or NUM_GENERATED of a generated task.
        """
        task = read_task(name)
        num = limit if limit is not None or isinstance(task, FileTask) else NUM_GENERATED
        return cls(name, task, task.problems(Split.TEST, num), items_file)

    def check(self, model: LoadedModel) -> None:
        """Raises UserError that names the problem whose prompt leaves too few positions for an answer."""
        max_new_tokens = model.config.generation.max_new_tokens
        for problem in self.problems:
            free = model.scorer.positions_after(self.task.prompt(problem))
            if free < max_new_tokens:
                raise UserError(
                    f"{self.name}, {problem.origin}: the prompt leaves {free} of the model's "
                    f"{model.scorer.model.max_length} positions, but generation.max_new_tokens is {max_new_tokens}"
                )

    def run(self, model: LoadedModel, folder: Path, progress: Progress) -> "TaskResult":
        on_work = progress(self.name, len(self.problems))
        prompts = [model.scorer.encode_prompt(self.task.prompt(problem)) for problem in self.problems]
        rows: list[Row] = []
        for problem, written in zip(self.problems, model.writer.write(prompts, is_traced=True), strict=True):
            verdict = self.task.check(problem, _completion(model, written))
            rows.append(self._row(problem, verdict, model, written))
            on_work(1)
        write_rows(folder / self.items_file, rows)
        levels = sorted({row[self.task.difficulty_name] for row in rows})
        by_level = {level: [row for row in rows if row[self.task.difficulty_name] == level] for level in levels}
        return TaskResult(
            kind="task",
            file=choice_name(TASKS, self.task),
            task=self.name,
            difficulty=self.task.difficulty_name,
            num_items=len(rows),
            num_without_answer=sum(row["answer"] is None for row in rows),
            **_figures(rows),
            levels={f"{level:g}": _figures(group) for level, group in by_level.items()},
            items=self.items_file,
        )

    def _row(self, problem: Problem, verdict: Verdict, model: LoadedModel, written: Written) -> Row:
        return {
            "origin": problem.origin,
            self.task.difficulty_name: problem.difficulty,
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
    """Accuracy and mean score, of all problems and by difficulty."""

    def show(self) -> None:
        table = Table(title=f"{self['file']}: {self['num_items']} problems", title_justify="left")
        for heading in (self["difficulty"].replace("_", " "), "right, 95 % interval", "mean score"):
            table.add_column(heading, justify="right")
        levels = self["levels"] if len(self["levels"]) > 1 else {}
        for level, figures in {**levels, "all": self}.items():
            table.add_row(level, percent_with_interval(figures), f"{figures['mean_score']:.3f}")
        Console().print(table)


def _completion(model: LoadedModel, written: Written) -> str:
    """What the task checks: the answer of a chat model, without its reasoning, or the text before a stop text."""
    if isinstance(model.config.score.wording, Chat):
        return model.template.read(written.token_ids).answer
    return cut_at(model.writer.tokenizer.decode(written.token_ids), model.config.score.wording.stop_texts)


def _figures(rows: Sequence[Row]) -> dict[str, Any]:
    mean_score = sum(row["score"] for row in rows) / len(rows)
    return {**proportion([row["is_correct"] for row in rows]), "mean_score": mean_score}

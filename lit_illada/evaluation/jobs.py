"""The evaluations of one `score` command: what the user requested, read, checked and listed in order of execution."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lit_illada.checkpoints.open import run_of
from lit_illada.config import ScoreConfig
from lit_illada.errors import UserError, unknown
from lit_illada.evaluation.base import Evaluation, LoadedModel, Progress, Result
from lit_illada.evaluation.chained_arithmetic import ChainedArithmetic
from lit_illada.evaluation.harness import Harness
from lit_illada.evaluation.held_out import read_held_out
from lit_illada.evaluation.infill_lines import InfillLines
from lit_illada.evaluation.multiple_choice import MultipleChoice
from lit_illada.evaluation.numeric_problems import NumericProblems
from lit_illada.evaluation.task_problems import TaskProblems, names_task
from lit_illada.evaluation.text_likelihood import TextLikelihood
from lit_illada.evaluation.writer import Writer
from lit_illada.runtime.files import read_text
from lit_illada.tasks.items import ChoiceItem, NumberItem, read_items
from lit_illada.tasks.registry import TASKS

Job = Callable[[Progress], Result]
"""Runs one evaluation, prints its result and returns it."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate. Raises UserError where nothing is requested."""

    tasks: Sequence[Path] = ()
    """JSON-lines files of multiple-choice items or of problems with a numeric answer."""
    texts: Sequence[Path] = ()
    """Text files to compute the likelihood of."""
    harness: Sequence[str] = ()
    """lm-eval tasks: names, or paths of YAML files."""
    include_path: Path | None = None
    """Folder with further lm-eval tasks."""
    is_reasoning: bool = False
    """Whether to solve generated chained arithmetic."""
    num_held_out: int | None = None
    """Questions made of the run's own held-out data; None: none."""
    num_fewshot: int | None = None
    """Solved examples before each question of an lm-eval task; None: as the task defines."""
    named_tasks: Sequence[str] = ()
    """Verifiable tasks: names, `file.py:Class`, or mappings of a name and settings."""
    num_samples: int = 1
    """Completions per problem of a named task."""
    num_infill_lines: int | None = None
    """Lines of the run's held-out text to fill in; None: none."""

    @classmethod
    def split_tasks(cls, tasks: Sequence[str]) -> tuple[list[Path], list[str]]:
        """(files, named tasks) of the values of --task. Raises UserError for one word that is neither."""
        named = [task for task in tasks if names_task(task)]
        for task in tasks:
            if task not in named and not Path(task).suffix and not Path(task).exists():
                raise unknown("task", task, [*TASKS, "a file"])
        return [Path(task) for task in tasks if task not in named], named

    def __post_init__(self) -> None:
        if self.num_fewshot is not None and not self.harness:
            raise UserError(f"--num-fewshot {self.num_fewshot} is only for lm-eval's tasks: name one by --harness TASK")
        if self.num_samples > 1 and not self.named_tasks:
            raise UserError(f"--samples {self.num_samples} is only for tasks: name one by --task, such as countdown")
        own = self.num_held_out or self.num_infill_lines
        if not (self.files or self.named_tasks or self.harness or self.is_reasoning or own):
            raise UserError(
                "nothing to score: give --task FILE|NAME, --text FILE, --reasoning, --held-out NUMBER, "
                "--infill-lines NUMBER or --harness TASK"
            )

    @property
    def uses_wording(self) -> bool:
        """Whether an evaluation puts its items to the model in the wording `score.wording`."""
        return bool(self.tasks or self.named_tasks or self.harness)

    @property
    def files(self) -> list[Path]:
        return [*self.tasks, *self.texts]

    def sha256(self) -> str | None:
        """Hash of the files' contents; None without files."""
        return hashlib.sha256(b"".join(file.read_bytes() for file in self.files)).hexdigest() if self.files else None

    def record(self, checkpoint: Path) -> dict[str, Any]:
        """What must be equal for a killed attempt to be resumed. checkpoint: its file or folder, not the run's."""
        return {
            "checkpoint_state": _state(checkpoint),
            "files": [path.name for path in self.files],
            "files_sha256": self.sha256(),
            "harness": list(self.harness),
            "is_reasoning": self.is_reasoning,
            "num_held_out": self.num_held_out,
            "num_fewshot": self.num_fewshot,
            "num_infill_lines": self.num_infill_lines,
            "named_tasks": list(self.named_tasks),
            "num_samples": self.num_samples,
        }


def problems_sha256(evaluations: Sequence[Evaluation]) -> str | None:
    """Hash of the problems of all named tasks, which files or a user's own class may have changed; None without any."""
    tasks = [evaluation for evaluation in evaluations if isinstance(evaluation, TaskProblems)]
    if not tasks:
        return None
    content = [[problem.question, problem.reference] for task in tasks for problem in task.problems]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


def read_evaluations(request: EvaluationRequest, config: ScoreConfig, checkpoint: Path) -> list[Evaluation]:
    """Reads the material of all evaluations, in the order in which their results are stored, without a model.

    checkpoint: its file, or the run folder. Raises UserError for material that is missing or invalid.
    """
    evaluations: list[Evaluation] = []
    if request.is_reasoning:
        evaluations.append(ChainedArithmetic.read(config.reasoning))
    for number, path in enumerate(dict.fromkeys(request.tasks)):
        evaluations.append(_read_task(path, config.score.limit, f"items-{number}-{path.stem}.jsonl"))
    for number, name in enumerate(dict.fromkeys(request.named_tasks)):
        file = f"generations-task-{number}.jsonl"
        evaluations.append(TaskProblems.read(name, config.score.limit, file, request.num_samples))
    evaluations += [TextLikelihood(path, read_text(path)) for path in dict.fromkeys(request.texts)]
    if request.num_held_out:
        evaluations.append(read_held_out(run_of(checkpoint), request.num_held_out))
    if request.num_infill_lines:
        evaluations.append(InfillLines.read(run_of(checkpoint), request.num_infill_lines))
    if request.harness:
        evaluations.append(Harness.read(request.harness, request.include_path, request.num_fewshot))
    return evaluations


def jobs(evaluations: Sequence[Evaluation], writer: Writer, config: ScoreConfig, folder: Path) -> list[Job]:
    """One job per evaluation, which writes its items to `folder`.

    Raises UserError for a scoring rule that the model does not support, and for material that does not fit the model.
    """
    model = LoadedModel(writer, config)
    _ = model.scorer  # refuses an unsupported rule, even where no evaluation uses it
    for evaluation in evaluations:
        evaluation.check(model)
    return [partial(_run, evaluation, model, folder) for evaluation in evaluations]


def _run(evaluation: Evaluation, model: LoadedModel, folder: Path, progress: Progress) -> Result:
    result = evaluation.run(model, folder, progress)
    result.show()
    return result


def _read_task(path: Path, limit: int | None, items_file: str) -> MultipleChoice | NumericProblems:
    items = read_items(path, limit)
    choices = [item for item in items if isinstance(item, ChoiceItem)]
    numbers = [item for item in items if isinstance(item, NumberItem)]
    return MultipleChoice(path, choices, items_file) if choices else NumericProblems(path, numbers, items_file)


def _state(checkpoint: Path) -> list[list[Any]]:
    """[name, bytes, modification time in ns] of each file: cheap evidence that a checkpoint is unchanged."""
    files = sorted(checkpoint.iterdir()) if checkpoint.is_dir() else [checkpoint]
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()]

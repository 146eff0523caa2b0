"""Prompts of an alignment run: problems of a task, or preference pairs, as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_illada.alignment.config import ProblemsConfig
from lit_illada.data.sft.chat_template import ChatTemplate, Message, Role
from lit_illada.errors import UserError
from lit_illada.tasks.base import Problem, Split, Task, split_of
from lit_illada.tasks.files import FileTask
from lit_illada.tasks.items import rows, text_field

_NUM_GENERATED = 10_000  # training problems of a task that generates them without end


@dataclass(frozen=True)
class Prompt:
    """A prompt with its problem, or with two answers."""

    ids: list[int]
    """Tokens up to the mark of the assistant's turn."""
    text: str
    """The user's message."""
    problem: Problem | None = None
    """The problem of the task; None: a preference pair."""
    answers: tuple[list[int], list[int]] | None = None
    """(chosen, rejected) tokens, EOS included; None: a problem."""

    @property
    def pair(self) -> tuple[list[int], list[int]]:
        """The two answers of a preference pair."""
        assert self.answers is not None, "a preference pair"
        return self.answers


@dataclass(frozen=True)
class Prompts:
    """The prompts of a run, disjoint."""

    train: list[Prompt]
    held_out: list[Prompt]


def task_prompts(task: Task, config: ProblemsConfig, template: ChatTemplate, num_held_out: int) -> Prompts:
    """The first training problems, and the first validation problems that differ from them.

    Raises UserError where the task has too few, or none of the requested difficulties.
    """
    num_train = config.num_train
    if num_train is None and not isinstance(task, FileTask):
        num_train = _NUM_GENERATED
    train = _of_difficulty(task, config, Split.TRAIN, num_train)
    # more than needed where some are left out by difficulty
    num_drawn = num_held_out if config.difficulties is None else 4 * num_held_out
    held_out = _of_difficulty(task, config, Split.VALIDATION, None if isinstance(task, FileTask) else num_drawn)
    held_out = held_out[:num_held_out]
    if len(held_out) < 2:
        raise UserError(f"the task has {len(held_out)} held-out problems; an accuracy needs 2 or more")
    trained = {problem.question for problem in train}
    if overlap := trained & {problem.question for problem in held_out}:
        raise UserError(
            f"{len(overlap)} held-out problems of the task are training problems too, such as {min(overlap)[:60]!r}: "
            "its splits must be disjoint"
        )
    return Prompts(*([_prompt(task, problem, template) for problem in part] for part in (train, held_out)))


def preference_prompts(path: str, template: ChatTemplate, num_held_out: int, held_out_fraction: float = 0.1) -> Prompts:
    """The pairs of a file of lines {"prompt": …, "chosen": …, "rejected": …}.

    A hash of the prompt decides which are held out. Raises UserError for a line with equal texts or a missing field.
    """
    train: list[Prompt] = []
    held_out: list[Prompt] = []
    for line, row in rows(Path(path), None):
        where = f"{path}:{line}"
        prompt, chosen, rejected = (text_field(where, row, name) for name in ("prompt", "chosen", "rejected"))
        if chosen == rejected:
            raise UserError(f"{where}: chosen and rejected are equal, so the pair has no preference: remove the line")
        question = Message(Role.USER, prompt)
        pairs = [template.encode([question, Message(Role.ASSISTANT, text)]) for text in (chosen, rejected)]
        is_held_out = split_of(prompt, held_out_fraction) is Split.VALIDATION
        answers = pairs[0][1], pairs[1][1]
        (held_out if is_held_out else train).append(Prompt(pairs[0][0], prompt, answers=answers))
    if not train or len(held_out) < 2:
        raise UserError(
            f"{path}: {len(train)} training and {len(held_out)} held-out pairs (a tenth, by a hash of the prompt); "
            "add pairs: a run needs 1 and 2"
        )
    return Prompts(train, held_out[:num_held_out])


def check_lengths(prompts: Sequence[Prompt], max_new_tokens: int, max_positions: int) -> None:
    """Raise UserError if a prompt with its completion exceeds the model's positions."""
    for prompt in prompts:
        new = max_new_tokens if prompt.answers is None else max(map(len, prompt.answers))
        if len(prompt.ids) + new > max_positions:
            where = prompt.problem.origin if prompt.problem is not None else "a preference pair"
            raise UserError(
                f"{where}: the prompt has {len(prompt.ids)} tokens and the completion up to {new}, together more than "
                f"model.max_position_embeddings={max_positions}"
            )


def _of_difficulty(task: Task, config: ProblemsConfig, split: Split, num: int | None) -> list[Problem]:
    problems = task.problems(split, num)
    if config.difficulties is None:
        return problems
    low, high = config.difficulties
    chosen = [problem for problem in problems if low <= problem.difficulty <= high]
    if not chosen:
        present = sorted({problem.difficulty for problem in problems})
        raise UserError(
            f"problems.difficulties is [{low:g}, {high:g}], but the {len(problems)} {split} problems have "
            f"{task.difficulty_name} {present[0]:g} … {present[-1]:g}: choose from these, or change the task's range"
        )
    return chosen


def _prompt(task: Task, problem: Problem, template: ChatTemplate) -> Prompt:
    text = task.prompt(problem)
    return Prompt(template.encode_prompt([Message(Role.USER, text)]), text, problem)

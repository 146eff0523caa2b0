"""Prompts of an alignment run: problems of a task, or preference pairs, as token ids."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_illada.alignment.config import ProblemsConfig
from lit_illada.data.sft.chat_template import ChatTemplate, Message, Role
from lit_illada.errors import UserError
from lit_illada.tasks.base import Problem, Split, Task, TooFewProblemsError, requested, split_of
from lit_illada.tasks.files import FileTask
from lit_illada.tasks.items import rows, text_field

log = logging.getLogger(__name__)
_NUM_GENERATED = 10_000  # training problems of a task that generates them without end
_MAX_DRAWN = 64  # problems drawn per requested one: rarer difficulties take too long
_MIN_DRAWN = 1024  # without a problem of the requested difficulties, before these are refused


@dataclass(frozen=True)
class Prompt:
    """A prompt with its problem, or with two answers."""

    ids: list[int]
    """Tokens up to the mark of the assistant's turn."""
    text: str
    """The user's message."""
    origin: str
    """Where the prompt comes from, for messages: file and line, or the problem."""
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

    Warns where fewer than `num_held_out` validation problems, or than `num_train` training problems, have the requested
    difficulties. Raises UserError where the task has too few problems, or none of these difficulties.
    """
    train = _training_problems(task, config)
    held_out = _problems(task, config, Split.VALIDATION, num_held_out, "trainer.val_rows")
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
        (held_out if is_held_out else train).append(Prompt(pairs[0][0], prompt, where, answers=answers))
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
            raise UserError(
                f"{prompt.origin}: the prompt has {len(prompt.ids)} tokens and the completion up to {new}, together "
                f"more than model.max_position_embeddings={max_positions}"
            )


def _training_problems(task: Task, config: ProblemsConfig) -> list[Problem]:
    key, num = "problems.num_train", config.num_train
    if num is not None:
        return _problems(task, config, Split.TRAIN, num, key)
    default = None if isinstance(task, FileTask) else _NUM_GENERATED
    return _of_difficulty(task, config, Split.TRAIN, requested(task, Split.TRAIN, key, None, default))


def _problems(task: Task, config: ProblemsConfig, split: Split, num: int, key: str) -> list[Problem]:
    """The first `num` problems of the requested difficulties; fewer, with a warning, where there are no more.

    key: the config key of `num`.
    """
    if isinstance(task, FileTask) and (split is not Split.TRAIN or config.difficulties is not None):
        chosen = _of_difficulty(task, config, split, task.problems(split))[:num]
    elif config.difficulties is None:
        chosen = requested(task, split, key, num)
    else:
        chosen = _drawn(task, config, split, num, key)[:num]
    if len(chosen) < num:
        limits = "" if config.difficulties is None else f" of problems.difficulties={_span(config.difficulties)}"
        log.warning("%s is %d, but the task gives only %d %s problems%s", key, num, len(chosen), split, limits)
    return chosen


def _drawn(task: Task, config: ProblemsConfig, split: Split, num: int, key: str) -> list[Problem]:
    """Problems of the requested difficulties, from draws that grow until there are `num` or the task has no more."""
    drawn, size, most = requested(task, split, key, num), num, max(_MAX_DRAWN * num, _MIN_DRAWN)
    while len(chosen := _within(config, drawn)) < num and len(drawn) == size < (most if chosen else _MIN_DRAWN):
        need = 11 * size * num // (10 * len(chosen)) if chosen else 0  # a tenth more than expected
        size = min(max(need, 2 * size), most)
        drawn = max(drawn, _up_to(task, split, size), key=len)
    return _of_difficulty(task, config, split, drawn)


def _up_to(task: Task, split: Split, num: int) -> list[Problem]:
    """The first `num` problems, or as many as the task says it has."""
    try:
        return task.problems(split, num)
    except TooFewProblemsError as error:
        return _up_to(task, split, error.num_found) if 0 < error.num_found < num else []


def _of_difficulty(task: Task, config: ProblemsConfig, split: Split, problems: list[Problem]) -> list[Problem]:
    """Those of the requested difficulties. Raises UserError where there are none."""
    chosen = _within(config, problems)
    if problems and not chosen and config.difficulties is not None:
        present = sorted({problem.difficulty for problem in problems})
        levels = f"{present[0]:g}" + (f" … {present[-1]:g}" if len(present) > 1 else "")
        raise UserError(
            f"problems.difficulties is {_span(config.difficulties)}, but the {len(problems)} {split} problems have "
            f"{task.difficulty_name} {levels}: choose from these, or change the task's range"
        )
    return chosen


def _within(config: ProblemsConfig, problems: list[Problem]) -> list[Problem]:
    if config.difficulties is None:
        return problems
    low, high = config.difficulties
    return [problem for problem in problems if low <= problem.difficulty <= high]


def _span(limits: Sequence[float]) -> str:
    return f"[{limits[0]:g}, {limits[1]:g}]"


def _prompt(task: Task, problem: Problem, template: ChatTemplate) -> Prompt:
    text = task.prompt(problem)
    return Prompt(template.encode_prompt([Message(Role.USER, text)]), text, problem.origin, problem)

"""Callbacks that generate at every validation: samples (`TextSamples`), exact match of answers (`ExactMatch`)."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_illada.runtime.files import open_to_append
from lit_illada.stats.intervals import wilson
from lit_illada.training.callbacks.tensorboard import add_completion
from lit_illada.training.metrics import publish

_NUM_SHOWN = 3  # answers per difficulty in TensorBoard


class TextSamples(Callback):
    """Writes the completion of each prompt to TensorBoard and to `file` (`samples.txt` of the run folder).

    complete: returns one completion per prompt; deterministic, called on every rank.
    """

    def __init__(self, prompts: list[str], complete: Callable[[], list[str]], file: Path) -> None:
        self._prompts = prompts
        self._complete = complete
        self._file = file

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        completions = self._complete() if self._prompts else []
        if not trainer.is_global_zero or not completions:
            return
        step = trainer.global_step
        with open_to_append(self._file) as file:
            for prompt, completion in zip(self._prompts, completions, strict=True):
                file.write(f"=== step {step}\n{prompt}{completion}\n\n")
        for index, (prompt, completion) in enumerate(zip(self._prompts, completions, strict=True)):
            add_completion(trainer.loggers, f"samples/prompt_{index}", prompt, completion, step)


@dataclass(frozen=True)
class Question:
    """A held-out problem with a verifiable answer."""

    prompt_ids: list[int]
    """Token ids that the model completes."""
    prompt: str
    """Text of the prompt."""
    truth: str
    """Text of the correct answer."""
    check: Callable[[Sequence[int]], tuple[str, bool]]
    """Maps a response's token ids to its text and whether its answer is right."""


class ExactMatch(Callback):
    """Logs val/exact_match_<difficulty>, a fraction, with its 95 % Wilson interval (`_low`, `_high`).

    All answers are appended to `file` as JSON lines; the first ones of each difficulty also go to TensorBoard.

    questions: by difficulty. answer: maps prompts' ids to responses' ids; deterministic.
    """

    def __init__(
        self,
        questions: dict[str, list[Question]],
        answer: Callable[[list[list[int]]], list[list[int]]],
        file: Path,
    ) -> None:
        self._questions = questions
        self._answer = answer
        self._file = file

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for difficulty, questions in self._questions.items():
            # every rank generates: with a sharded model no rank can do so alone
            responses = self._answer([question.prompt_ids for question in questions])
            checked = [question.check(response) for question, response in zip(questions, responses, strict=True)]
            num_right = sum(is_right for _, is_right in checked)
            low, high = wilson(num_right, len(checked))
            tag = f"val/exact_match_{difficulty}"
            publish(pl_module, {tag: num_right / len(checked), f"{tag}_low": low, f"{tag}_high": high})
            if trainer.is_global_zero:
                self._write(trainer, difficulty, questions, checked)

    def _write(
        self, trainer: Trainer, difficulty: str, questions: list[Question], checked: list[tuple[str, bool]]
    ) -> None:
        for index, (question, (text, _)) in enumerate(zip(questions[:_NUM_SHOWN], checked, strict=False)):
            tag = f"answers_{difficulty}/prompt_{index}"
            add_completion(trainer.loggers, tag, question.prompt, text, trainer.global_step)
        with open_to_append(self._file) as file:
            for question, (text, is_right) in zip(questions, checked, strict=True):
                record = {
                    "step": trainer.global_step,
                    "difficulty": difficulty,
                    "prompt": question.prompt,
                    "response": text,
                    "truth": question.truth,
                    "is_right": is_right,
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

"""Callbacks that show an alignment run: its phase on the progress bar, and completions with their rewards as text."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_illada.alignment.module import AlignModule
from lit_illada.alignment.rollout import Sample
from lit_illada.runtime.files import open_to_append
from lit_illada.training.callbacks.progress import ProgressBar
from lit_illada.training.callbacks.tensorboard import add_completion

_NUM_SHOWN = 3


class ShowPhase(Callback):
    """Shows on the progress bar whether the run samples, judges, scores or updates."""

    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, AlignModule)
        if trainer.is_global_zero:
            pl_module.on_phase = self._bar.describe


class ShowCompletions(Callback):
    """Writes completions with their rewards to TensorBoard, samples.txt and answers.jsonl.

    Of the first rollout after every validation, the completions of the first prompt go to `samples`, the first few also
    to TensorBoard. Of a validation, all go to `answers`, and the first few to TensorBoard.
    """

    def __init__(self, samples: Path, answers: Path, every_steps: int) -> None:
        """every_steps: interval of the validations."""
        self._samples, self._answers, self._every_steps = samples, answers, every_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, AlignModule)
        rewards = pl_module.sampled
        if not batch.is_first or rewards is None or not trainer.is_global_zero:
            return
        step, updates = pl_module.rollout_step, pl_module.config.updates
        if step and step // self._every_steps == (step - updates) // self._every_steps:
            return
        with open_to_append(self._samples) as file:
            for index in range(pl_module.config.group_size):
                sample = pl_module.samples[index]
                terms = {name: values[index] for name, values in rewards.by_term.items()}
                described = "  ".join(f"{name} {value}" for name, value in terms.items())
                text = f"{sample.answered.text}\n(reward {rewards.total[index]:g}: {described})"
                file.write(f"=== step {step}\n{sample.prompt.text}\n{text}\n\n")
                if index < _NUM_SHOWN:
                    add_completion(trainer.loggers, f"rollout/completion_{index}", sample.prompt.text, text, step)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, AlignModule)
        step = trainer.global_step
        if not trainer.is_global_zero or not pl_module.held_out.samples:
            return
        with open_to_append(self._answers) as file:
            for index, sample, is_right in pl_module.held_out.samples:
                file.write(json.dumps(_record(step, index, sample, is_right), ensure_ascii=False) + "\n")
        for index, sample, is_right in pl_module.held_out.samples[:_NUM_SHOWN]:
            text = f"{sample.answered.text}\n({'right' if is_right else 'wrong'})"
            add_completion(trainer.loggers, f"answers/problem_{index}", sample.prompt.text, text, step)


def _record(step: int, index: int, sample: Sample, is_right: bool) -> dict[str, Any]:
    problem = sample.prompt.problem
    assert problem is not None
    return {
        "step": step,
        "problem": index,
        "difficulty": problem.difficulty,
        "prompt": sample.prompt.text,
        "response": sample.answered.text,
        "is_right": is_right,
        "is_finished": sample.answered.is_finished,
        "is_loop": sample.is_loop,
    }

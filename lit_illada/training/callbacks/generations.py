"""Callbacks that generate at every validation: samples (`TextSamples`), exact match of answers (`ExactMatch`)."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_illada.data.sft_datamodule import Difficulty, EvaluationExample, SFTDataModule
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.runtime.files import open_to_append
from lit_illada.stats.intervals import wilson
from lit_illada.training.callbacks.tensorboard import add_completion
from lit_illada.training.metrics import publish

_NUM_SHOWN = 3  # answers per difficulty in TensorBoard
Complete = Callable[[Sequence[Sequence[int]]], list[list[int]]]
"""Maps token ids of prompts to those of their completions. Deterministic; every rank calls it, since gathering the
weights of a sharded model is collective."""


class TextSamples(Callback):
    """Writes the completion of each prompt to TensorBoard and to `file` (`samples.txt` of the run folder).

    prompts: text and token ids of each. is_batched: complete all prompts in one batch; false: one at a time, which
        gives the text that `generate` prints for the prompt.
    """

    def __init__(
        self,
        prompts: Sequence[tuple[str, list[int]]],
        complete: Complete,
        tokenizer: Tokenizer,
        file: Path,
        *,
        is_batched: bool,
    ) -> None:
        self._texts = [text for text, _ in prompts]
        ids = [prompt_ids for _, prompt_ids in prompts]
        self._batches = [ids] if is_batched and ids else [[prompt_ids] for prompt_ids in ids]
        self._complete = complete
        self._decode = tokenizer.decode
        self._file = file

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        completions = [self._decode(ids) for batch in self._batches for ids in self._complete(batch)]
        if not trainer.is_global_zero or not completions:
            return
        step = trainer.global_step
        pairs = list(zip(self._texts, completions, strict=True))
        with open_to_append(self._file) as file:
            for prompt, completion in pairs:
                file.write(f"=== step {step}\n{prompt}{completion}\n\n")
        for index, (prompt, completion) in enumerate(pairs):
            add_completion(trainer.loggers, f"samples/prompt_{index}", prompt, completion, step)


class ExactMatch(Callback):
    """Logs val/exact_match_<difficulty>, a fraction, with its 95 % Wilson interval (`_low`, `_high`).

    All answers are appended to `file` as JSON lines; the first ones of each difficulty also go to TensorBoard.
    """

    def __init__(self, datamodule: SFTDataModule, num_examples: int, complete: Complete, file: Path) -> None:
        """num_examples: held-out problems per difficulty. Raises UserError where a difficulty has fewer."""
        self._datamodule = datamodule
        self._examples = {
            difficulty: datamodule.evaluation_examples(difficulty, num_examples)
            for difficulty in datamodule.difficulties
        }
        self._complete = complete
        self._file = file

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for difficulty, examples in self._examples.items():
            responses = self._complete([example.prompt_ids for example in examples])
            are_right = [
                self._datamodule.is_right(example, response)
                for example, response in zip(examples, responses, strict=True)
            ]
            low, high = wilson(sum(are_right), len(are_right))
            tag = f"val/exact_match_{difficulty.value}"
            publish(pl_module, {tag: sum(are_right) / len(are_right), f"{tag}_low": low, f"{tag}_high": high})
            if trainer.is_global_zero:
                self._write(trainer, difficulty, examples, responses, are_right)

    def _write(
        self,
        trainer: Trainer,
        difficulty: Difficulty,
        examples: list[EvaluationExample],
        responses: list[list[int]],
        are_right: list[bool],
    ) -> None:
        decode = self._datamodule.tokenizer.decode
        records: list[dict[str, Any]] = [
            {
                "step": trainer.global_step,
                "difficulty": difficulty.value,
                "prompt": decode(example.prompt_ids),
                "response": decode(response),
                "truth": example.truth,
                "is_right": is_right,
            }
            for example, response, is_right in zip(examples, responses, are_right, strict=True)
        ]
        for index, record in enumerate(records[:_NUM_SHOWN]):
            tag = f"answers_{difficulty.value}/prompt_{index}"
            add_completion(trainer.loggers, tag, record["prompt"], record["response"], trainer.global_step)
        with open_to_append(self._file) as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

"""What does fine-tuning add to pretraining? Curves of the responses alone, and exact match of generated answers.

Shapes: B rows, T tokens, M masked tokens.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

from lit_illada.batch import TokenBatch, TokenScores
from lit_illada.objective.loss import NoisyBatch
from lit_illada.stats.intervals import wilson
from lit_illada.training.callbacks.tensorboard import add_completion
from lit_illada.training.metrics import publish
from lit_illada.training.module import PretrainModule

_NUM_SHOWN = 3  # answers of a difficulty in TensorBoard


class SFTModule(PretrainModule):
    """Fine-tuning: the loss is the objective's, on the rows as the data lays them out.

    Beside it, whatever counts in the loss: `train/response_nll` and `train/response_accuracy`, unweighted, of the
    masked tokens of responses, and `train/eos_nll`, of the EOS that ends one: a loss low by easy padding shows there.
    """

    def __init__(self, *args: Any, eos_token_id: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.responses = ResponseCurves(eos_token_id)

    def watch(self, batch: TokenBatch, noisy: NoisyBatch, scores: TokenScores) -> None:
        self.responses.update(batch, noisy, scores)

    @property
    def interval_metrics(self) -> dict[str, Metric]:
        return {**super().interval_metrics, "responses": self.responses}

    def training_values(self) -> dict[str, float | Tensor]:
        responses = {f"train/{name}": value for name, value in self.responses.compute().items() if not value.isnan()}
        self.responses.reset()
        return {**super().training_values(), **responses}


class ResponseCurves(Metric):
    """compute() gives `response_nll`, `response_accuracy` and `eos_nll`, NaN where no such token was masked."""

    full_state_update = False
    sums: Tensor  # masked response tokens: nll, correct, count; their EOS: nll, count

    def __init__(self, eos_token_id: int) -> None:
        super().__init__()
        self.eos_token_id = eos_token_id
        self.add_state("sums", torch.zeros(5, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch: TokenBatch, noisy: NoisyBatch, scores: TokenScores) -> None:
        assert batch.is_response is not None
        copies = len(noisy.noisy_ids) // len(batch.row_ids)  # complementary masks lay the batch twice
        is_response_M = batch.is_response.repeat(copies, 1)[noisy.is_masked]
        is_eos_M = is_response_M & (noisy.targets == self.eos_token_id)
        nll_M = scores.nll.detach().double()
        self.sums += torch.stack(
            [
                (nll_M * is_response_M).sum(),
                (scores.is_correct & is_response_M).sum().double(),
                is_response_M.sum().double(),
                (nll_M * is_eos_M).sum(),
                is_eos_M.sum().double(),
            ]
        )

    def compute(self) -> dict[str, Tensor]:
        nll, num_correct, count, eos_nll, eos_count = self.sums
        return {"response_nll": nll / count, "response_accuracy": num_correct / count, "eos_nll": eos_nll / eos_count}


@dataclass(frozen=True)
class Question:
    """prompt_ids: what the model continues. check: a response's ids -> (its text, whether its answer is right)."""

    prompt_ids: list[int]
    prompt: str
    truth: str
    check: Callable[[Sequence[int]], tuple[str, bool]]


class ExactMatch(Callback):
    """val/exact_match_<difficulty> at every validation, with its 95 % Wilson interval.

    The answers go to a file, the first ones of each difficulty to TensorBoard too.

    questions: by difficulty. answer: prompts' ids -> responses' ids, deterministic.
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
            # every rank asks: where the model is cut, no rank can answer alone
            responses = self._answer([question.prompt_ids for question in questions])
            checked = [question.check(response) for question, response in zip(questions, responses, strict=True)]
            num_right = sum(is_right for _, is_right in checked)
            share, (low, high) = num_right / len(checked), wilson(num_right, len(checked))
            tag = f"val/exact_match_{difficulty}"
            publish(pl_module, {tag: share, f"{tag}_low": low, f"{tag}_high": high})
            if not trainer.is_global_zero:
                continue
            shown = zip(questions[:_NUM_SHOWN], checked, strict=False)
            for index, (question, (text, _)) in enumerate(shown):
                tag = f"answers_{difficulty}/prompt_{index}"
                add_completion(trainer.loggers, tag, question.prompt, text, trainer.global_step)
            with self._file.open("a", encoding="utf-8") as file:
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

"""The LightningModule of fine-tuning: pretraining's, plus training curves of the responses.

Shapes: B rows, T tokens, M masked tokens.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_illada.batch import TokenBatch, TokenScores
from lit_illada.objective.loss import NoisyBatch
from lit_illada.training.module import PretrainModule


class SFTModule(PretrainModule):
    """Fine-tuning on the objective's loss; which tokens carry it is decided by the data's row layout.

    Also logs, unweighted and independent of the loss, `train/response_nll` (nats per masked token),
    `train/response_accuracy` and `train/eos_nll` (of the EOS that ends a response). They reveal a loss that is low only
    because padding is easy to predict.
    """

    def __init__(self, *args: Any, eos_token_id: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.responses = ResponseCurves(eos_token_id)

    def observe_micro_batch(self, batch: TokenBatch, noisy: NoisyBatch, scores: TokenScores) -> None:
        self.responses.update(batch, noisy, scores)

    @property
    def interval_metrics(self) -> dict[str, Metric]:
        return {**super().interval_metrics, "responses": self.responses}

    def training_values(self) -> dict[str, float | Tensor]:
        responses = {f"train/{name}": value for name, value in self.responses.compute().items() if not value.isnan()}
        self.responses.reset()
        return {**super().training_values(), **responses}


class ResponseCurves(Metric):
    """Cross-entropy and accuracy of masked response tokens.

    compute() returns `response_nll`, `response_accuracy` and `eos_nll`; NaN where no such token was masked.
    """

    full_state_update = False
    sums: Tensor  # (5,): response nll, correct, count; EOS nll, count

    def __init__(self, eos_token_id: int) -> None:
        super().__init__()
        self.eos_token_id = eos_token_id
        self.add_state("sums", torch.zeros(5, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch: TokenBatch, noisy: NoisyBatch, scores: TokenScores) -> None:
        assert batch.is_response is not None
        copies = len(noisy.noisy_ids) // len(batch.row_ids)  # complementary masks repeat the batch
        is_response_M = batch.is_response.repeat(copies, 1).flatten().index_select(0, noisy.positions)
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

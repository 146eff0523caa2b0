"""The LightningModule of pretraining and fine-tuning: training step and validation.

Receives a built model and objective and depends on neither's config. Shapes: B rows, T tokens, M masked tokens.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torchmetrics import Metric

from lit_illada.batch import TokenBatch, TokenScores
from lit_illada.objective.loss import NoisyBatch, Objective, ScoreFn
from lit_illada.scoring.likelihood import Likelihood
from lit_illada.scoring.mask_grid import RowScores
from lit_illada.training.config.optim import OptimConfig
from lit_illada.training.distributed.parallel import num_data_ranks
from lit_illada.training.metrics import TrainingCurves, by_ratio, publish
from lit_illada.training.run_module import RunModule, TokenizerFiles
from lit_illada.training.user_trainer import check_batch


class PretrainModule(RunModule):
    """Pretraining of `model` on `objective`.

    Metrics are logged as `train/…` and `val/…`, for example for `ModelCheckpoint(monitor="val/nll_bound")`.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optim: OptimConfig,
        score_rows: Callable[[ScoreFn, TokenBatch], RowScores],
        likelihood: Likelihood,
        *,
        unigram_cross_entropy: float,
        max_steps: int,
        batch_rows: int,
        tokenizer: TokenizerFiles,
        hparams: dict[str, Any],
        shard: Callable[[DeviceMesh], None] | None = None,
    ) -> None:
        """
        Args:
            model: maps input ids (B, T), layout, selection (B, T) and targets (M,) to TokenScores.
            objective: draws masks and computes the loss.
            optim: optimizer, learning-rate schedule and clipping.
            score_rows: computes the likelihood bound of each validation row, independent of the objective.
            likelihood: accumulates `score_rows` over the validation set.
            unigram_cross_entropy: cross-entropy of the training data's token frequencies on the validation tokens, in
                nats/token, logged beside the bound; NaN if unknown.
            max_steps: optimizer steps of the learning-rate schedule.
            batch_rows: rows per optimizer step, over all ranks.
            tokenizer: saved in the checkpoints of a Trainer that has no run folder.
            hparams: plain values only, saved in every checkpoint.
            shard: shards the model over a mesh and loads its weights; None if every rank holds the whole model.
        """
        super().__init__(
            model,
            optim,
            max_steps=max_steps,
            batch_rows=batch_rows,
            tokenizer=tokenizer,
            hparams=hparams,
            shard=shard,
        )
        self.objective = objective
        self.score_rows = score_rows
        self.likelihood = likelihood
        self.unigram_cross_entropy = unigram_cross_entropy
        self.curves = TrainingCurves()

    def training_step(self, batch: TokenBatch, batch_idx: int) -> dict[str, Any]:
        """Compute the loss of one micro-batch on this rank; `RunModule` says how it becomes the step's gradient.

        Returns:
            loss: scalar, differentiable. head_rows: positions for which the LM head was computed. copies: how often
            the model processed the batch (2 with complementary masks).
        """
        if not self._is_batch_checked:
            check_batch(self.trainer, len(batch.row_ids), self.batch_rows)
            self._is_batch_checked = True
        self.tokens_seen += batch.input_ids.numel() * num_data_ranks(self.trainer)
        noisy = self.objective.corrupt(batch, progress=self.global_step / self.max_steps)
        scores = noisy.scored_by(self.model)
        loss = self.objective.loss(scores, noisy)
        # (3,): loss count, masked tokens' cross-entropy, number of masked tokens
        self._step_sums = self._step_sums + torch.stack([loss.count, loss.bins.nll.sum(), loss.bins.num_masked.sum()])
        self.curves.update(loss)
        self.observe_micro_batch(batch, noisy, scores)
        # The global count is known only after the step's last micro-batch; until then a constant keeps gradients at an
        # ordinary magnitude.
        self._reference = noisy.noisy_ids.numel()
        copies = len(noisy.noisy_ids) // len(batch.row_ids)  # complementary masks repeat the batch
        return {"loss": loss.sum / self._reference, "head_rows": noisy.targets.numel(), "copies": copies}

    def observe_micro_batch(self, batch: TokenBatch, noisy: NoisyBatch, scores: TokenScores) -> None:
        """Hook for subclasses: accumulate further training curves from a micro-batch."""

    def training_values(self) -> dict[str, float | Tensor]:
        values = self.curves.compute()
        self.curves.reset()
        return {
            **by_ratio("train_nll_by_ratio", values.pop("nll_by_ratio")),
            **by_ratio("train_accuracy_by_ratio", values.pop("accuracy_by_ratio")),
            **{f"train/{name}": value for name, value in values.items()},
            **super().training_values(),
        }

    @property
    def interval_metrics(self) -> dict[str, Metric]:
        return {"curves": self.curves}

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Add the rows' likelihoods to the validation metric."""
        self.likelihood.update(self.score_rows(self.model, batch), batch)

    def on_validation_epoch_end(self) -> None:
        values = self.likelihood.compute()
        self.likelihood.reset()
        if self.trainer.sanity_checking:  # the bound of a few rows is not comparable with later ones
            return
        self.validated_at = self.global_step
        unigram = self.unigram_cross_entropy
        baseline = {} if math.isnan(unigram) else {"val/unigram_cross_entropy": unigram}
        publish(
            self,
            {
                **by_ratio("val_nll_by_ratio", values.pop("cross_entropy_by_ratio")),
                **by_ratio("val_accuracy_by_ratio", values.pop("accuracy_by_ratio")),
                **{f"val/{name}": value for name, value in values.items()},
                **baseline,
            },
        )
        if self.trainer.state.fn == "fit" and self._schedule().observe(float(values["nll_bound"])):
            publish(self, {"train/plateau_at_step": float(self.global_step)})

    def global_count(self) -> float:
        self.objective.end_step(self._sum_over_ranks)
        count, nll, num_masked = self._sum_over_ranks(torch.as_tensor(self._step_sums)).tolist()
        self._step_sums = 0.0
        self.step_nll = nll / num_masked if num_masked else math.nan
        return count

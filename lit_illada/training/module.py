"""The LightningModule of a training run: training step, gradient normalisation and clipping, validation.

Receives a built model and objective, and knows neither's config. Shapes: B rows, T tokens, M masked tokens.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torchmetrics import Metric

from lit_illada.batch import TokenBatch, TokenScores
from lit_illada.errors import UserError
from lit_illada.objective.loss import NoisyBatch, Objective
from lit_illada.scoring.likelihood import Likelihood, RowScores, ScoreFn
from lit_illada.training.checkpointing.portable import PortableState
from lit_illada.training.config.optim import OptimConfig
from lit_illada.training.distributed.gradients import clamp, scale, total_norm
from lit_illada.training.distributed.parallel import ShardedStrategy, num_data_ranks
from lit_illada.training.metrics import TrainingCurves, by_ratio, publish, set_sums, sums_of
from lit_illada.training.optim import build_optimizer
from lit_illada.training.schedule import LearningRate
from lit_illada.training.user_trainer import check_batch, reconcile


class TokenizerFiles(Protocol):
    """A tokenizer, as checkpoints keep it."""

    def files(self) -> dict[str, str]:
        """Contents by file name."""


class PretrainModule(pl.LightningModule):
    """Pretraining of `model` on `objective`, under the project's own Trainer or any other of Lightning's.

    Of a Trainer, `accumulate_grad_batches` and `max_steps` follow from the config where they are left out;
    `gradient_clip_val` (0: no clipping) and `gradient_clip_algorithm` override `optim.gradient_clip_norm`, and
    `log_every_n_steps` is the interval of the training curves. A Trainer that would train other batches than the
    config's raises UserError. `train/…` and `val/…` are logged, for `ModelCheckpoint(monitor="val/nll_bound")`.
    """

    # builds a module from a checkpoint; set by lit_illada.api.checkpoints, which knows the configs
    _load: ClassVar[Callable[[Path, Any], "PretrainModule"] | None] = None

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
        model: input ids (B, T), layout, selection (B, T), targets (M,) -> TokenScores.
        score_rows: the bound of each validation row, the same for every objective. likelihood: their sum.
        unigram_cross_entropy: nats/token, of the training data's token frequencies on the validation tokens, logged
            beside the bound; NaN where it is not known.
        max_steps: optimizer steps, the length of the learning rate's schedule.
        batch_rows: rows of an optimizer step, over all ranks.
        tokenizer: saved in the checkpoints of a Trainer that has no run folder.
        hparams: plain values only, saved in every checkpoint.
        shard: shards the model over a mesh and gives it its weights; None where every rank holds the whole model.
        """
        super().__init__()
        self.model = model
        self.objective = objective
        self.score_rows = score_rows
        self.likelihood = likelihood
        self.unigram_cross_entropy = unigram_cross_entropy
        self.curves = TrainingCurves()
        self.optim = optim
        self.max_steps = max_steps
        self.batch_rows = batch_rows
        self.tokenizer = tokenizer
        self.gradient_norm = math.nan
        self.learning_rate = math.nan
        self.tokens_seen = 0  # training tokens so far, over all ranks
        self.validated_at: int | None = None
        self._is_batch_checked = False
        self._shard = shard
        self._step_before = 0  # optimizer steps when the micro-batch in progress began
        self._data_group: ProcessGroup | None = None
        # of the step so far: the loss's count, the masked tokens' cross-entropy, how many they are. No buffer: DDP
        # would overwrite every rank's own with rank 0's.
        self._sums: Tensor | float = 0.0
        self.step_nll = math.nan
        # plain values only: a checkpoint with objects in it could not be read under weights_only
        self.save_hyperparameters(hparams, logger=False)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            reconcile(self.trainer, self.max_steps)
            self._is_batch_checked = False

    def configure_model(self) -> None:
        """Lightning calls it before every fit and every validation; the first call shards the model."""
        if self._shard is None:
            return
        strategy = self.trainer.strategy
        if not isinstance(strategy, ShardedStrategy):
            raise UserError(
                "the config shards the model over devices (trainer.parallel.strategy=fsdp), and your Trainer does "
                "not: set trainer.parallel.strategy=ddp, or run `lit-illada pretrain`"
            )
        assert strategy.data_mesh is not None
        self._shard(strategy.device_mesh)
        self._shard = None
        self._data_group = strategy.data_mesh.get_group()
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.process_group = self._data_group

    def on_train_start(self) -> None:
        self._step_before = self.global_step

    def on_train_epoch_start(self) -> None:
        self._is_batch_checked = False

    def on_train_batch_start(self, batch: TokenBatch, batch_idx: int) -> None:
        self._step_before = self.global_step

    def training_step(self, batch: TokenBatch, batch_idx: int) -> dict[str, Any]:
        if not self._is_batch_checked:
            check_batch(self.trainer, len(batch.row_ids), self.batch_rows)
            self._is_batch_checked = True
        self.tokens_seen += batch.input_ids.numel() * num_data_ranks(self.trainer)
        noisy = self.objective.corrupt(batch, progress=self.global_step / self.max_steps)
        scores = self.model(noisy.noisy_ids, noisy.layout, select=noisy.is_masked, targets=noisy.targets)
        loss = self.objective.loss(scores, noisy)
        self._sums = self._sums + torch.stack([loss.count, loss.bins.nll.sum(), loss.bins.num_masked.sum()])
        self.curves.update(loss)
        self.watch(batch, noisy, scores)
        # The sum over a constant, so that gradients have an ordinary size; the step's own count follows when every
        # micro-batch of every rank is in.
        self._reference = noisy.noisy_ids.numel()
        copies = len(noisy.noisy_ids) // len(batch.row_ids)  # complementary masks repeat the batch
        return {"loss": loss.sum / self._reference, "head_rows": noisy.targets.numel(), "copies": copies}

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Normalise the summed gradient by the global count, then clip it; a non-finite gradient is dropped.

        Without gradients the optimizer leaves weights and moments alone: the step is skipped.
        gradient_clip_val, gradient_clip_algorithm: the Trainer's; None: `optim.gradient_clip_norm`, by norm.
        """
        self.objective.end_step(self._sum_over_ranks)
        self.learning_rate = optimizer.param_groups[0]["lr"]
        factor = self._global_scale()
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        self.gradient_norm = float(total_norm(gradients)) * factor
        if not math.isfinite(self.gradient_norm):
            optimizer.zero_grad(set_to_none=True)
            return
        clip = self.optim.gradient_clip_norm if gradient_clip_val is None else gradient_clip_val
        is_by_value = gradient_clip_algorithm == "value" and gradient_clip_val is not None
        if clip and not is_by_value and self.gradient_norm > clip:
            factor *= clip / self.gradient_norm
        scale(gradients, factor)
        if clip and is_by_value:
            clamp(gradients, clip)

    def on_train_batch_end(self, outputs: Any, batch: TokenBatch, batch_idx: int) -> None:
        self.end_step()

    def end_step(self) -> None:
        """Log the training curves, if a step has ended that is due; a second call for the same step does nothing.

        Lightning calls callbacks first, and one that saves the step calls this before it does.
        """
        if self.global_step == self._step_before:
            return
        self._step_before = self.global_step
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step % every == 0 or self.global_step == self.trainer.max_steps):
            publish(self, self.training_values())

    def watch(self, batch: TokenBatch, noisy: NoisyBatch, scores: TokenScores) -> None:
        """See a training micro-batch, for curves of a kind of training's own."""

    def training_values(self) -> dict[str, float | Tensor]:
        """What the training curves show now; begins their next stretch."""
        values = self.curves.compute()
        self.curves.reset()
        return {
            **by_ratio("train_nll_by_ratio", values.pop("nll_by_ratio")),
            **by_ratio("train_accuracy_by_ratio", values.pop("accuracy_by_ratio")),
            **{f"train/{name}": value for name, value in values.items()},
            "train/gradient_norm": self.gradient_norm,
            "train/learning_rate": self.learning_rate,
        }

    @property
    def interval_metrics(self) -> dict[str, Metric]:
        """The metrics that add up the training steps since curves were last logged, by name."""
        return {"curves": self.curves}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning counts micro-batches; a step may be divided otherwise now than when they were counted."""
        self.tokens_seen = checkpoint.get("tokens_seen", 0)
        if "loops" not in checkpoint:  # weights alone
            return
        group = self._data_group
        if (self.trainer.global_rank if group is None else torch.distributed.get_rank(group)) == 0:
            for name, sums in checkpoint.get("interval_sums", {}).items():
                set_sums(self.interval_metrics[name], sums)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        for counts in (progress["total"], progress["current"]):
            # a checkpoint written within a hook has not completed the batch of that hook
            pending = counts["processed"] - counts["completed"]
            counts.update(ready=done, started=done, processed=done, completed=done - pending)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.end_step()
        checkpoint["interval_sums"] = {
            name: sums_of(metric, self._sum_over_ranks) for name, metric in self.interval_metrics.items()
        }
        checkpoint["tokens_seen"] = self.tokens_seen
        if not isinstance(self.trainer.strategy, PortableState):  # of no run folder, which has the tokenizer
            checkpoint["tokenizer"] = self.tokenizer.files()

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, **_: Any
    ) -> Self:
        """The module of a checkpoint, whole on one device, ready for `trainer.validate` or `lit_illada.generate`.

        checkpoint_path: a `.ckpt`, or a run folder (its newest). map_location: a device; None is the CPU.
        Raises UserError where it is no checkpoint of a training run.
        """
        assert PretrainModule._load is not None, "import it as lit_illada.PretrainModule"
        return PretrainModule._load(Path(checkpoint_path), map_location)  # type: ignore[return-value]

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        self.likelihood.update(self.score_rows(self.model, batch), batch)

    def on_validation_epoch_end(self) -> None:
        values = self.likelihood.compute()
        self.likelihood.reset()
        if self.trainer.sanity_checking:  # a few rows, whose bound compares with nothing
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

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.model, self.optim.optimizer)
        schedule = LearningRate(optimizer, self.optim.schedule, self.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _global_scale(self) -> float:
        """What turns Lightning's mean over ranks and micro-batches into the sum over the global count.

        0 for a step in which nothing carried loss. Ends the step's sums: `step_nll` is its cross-entropy, nats a masked
        token.
        """
        count, nll, num_masked = self._sum_over_ranks(torch.as_tensor(self._sums)).tolist()
        self._sums = 0.0
        self.step_nll = nll / num_masked if num_masked else math.nan
        parts = num_data_ranks(self.trainer) * self.trainer.accumulate_grad_batches
        return self._reference * parts / count if count > 0 else 0.0

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(value, group=self._data_group, reduce_op="sum")  # type: ignore[return-value]

    def _schedule(self) -> LearningRate:
        return self.lr_schedulers()  # type: ignore[return-value]

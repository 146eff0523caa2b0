"""The LightningModule of a training run: training step, gradient normalisation and clipping, validation.

Receives a built model and objective and depends on neither's config. Shapes: B rows, T tokens, M masked tokens.
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
    """A tokenizer, as stored in checkpoints."""

    def files(self) -> dict[str, str]:
        """Contents by file name."""


class PretrainModule(pl.LightningModule):
    """Pretraining of `model` on `objective`, under the project's Trainer or any other Lightning Trainer.

    The Trainer's `accumulate_grad_batches` and `max_steps` default to the config's values. `gradient_clip_val` (0: no
    clipping) and `gradient_clip_algorithm` override `optim.gradient_clip_norm`; `log_every_n_steps` is the interval of
    the training curves. A Trainer whose batch differs from the config's raises UserError. Metrics are logged as
    `train/…` and `val/…`, for example for `ModelCheckpoint(monitor="val/nll_bound")`.
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
        # (3,), summed over the step's micro-batches: loss count, masked tokens' cross-entropy, number of masked tokens.
        # Not a buffer: DDP would overwrite it with rank 0's.
        self._step_sums: Tensor | float = 0.0
        self.step_nll = math.nan
        # plain values only: checkpoints are read with weights_only=True, which rejects other objects
        self.save_hyperparameters(hparams, logger=False)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            reconcile(self.trainer, self.max_steps)
            self._is_batch_checked = False

    def configure_model(self) -> None:
        """Shard the model on the first call; Lightning calls this hook before every fit and every validation."""
        if self._shard is None:
            return
        strategy = self.trainer.strategy
        if not isinstance(strategy, ShardedStrategy):
            raise UserError(
                "the config shards the model over devices (trainer.parallel.strategy=fsdp), but your Trainer does "
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
        """Compute the loss of one micro-batch on this rank.

        The gradient of an optimizer step is that of (sum of losses) / (sum of counts), over all micro-batches and
        ranks. Between this loss and that gradient, Lightning divides by `accumulate_grad_batches` and calls backward;
        DDP or FSDP averages gradients over the data ranks, at the last micro-batch unless
        `parallel.reduce_every_micro_batch` is set; then `configure_gradient_clipping`, below, replaces these divisors
        by the global count (`_global_scale`), clips, and drops a non-finite gradient.

        Returns:
            loss: scalar, differentiable. head_rows: positions for which the LM head was computed. copies: how often
            the model processed the batch (2 with complementary masks).
        """
        if not self._is_batch_checked:
            check_batch(self.trainer, len(batch.row_ids), self.batch_rows)
            self._is_batch_checked = True
        self.tokens_seen += batch.input_ids.numel() * num_data_ranks(self.trainer)
        noisy = self.objective.corrupt(batch, progress=self.global_step / self.max_steps)
        scores = self.model(noisy.noisy_ids, noisy.layout, select=noisy.is_masked, targets=noisy.targets)
        loss = self.objective.loss(scores, noisy)
        self._step_sums = self._step_sums + torch.stack([loss.count, loss.bins.nll.sum(), loss.bins.num_masked.sum()])
        self.curves.update(loss)
        self.observe_micro_batch(batch, noisy, scores)
        # The global count is known only after the step's last micro-batch; until then a constant keeps gradients at an
        # ordinary magnitude.
        self._reference = noisy.noisy_ids.numel()
        copies = len(noisy.noisy_ids) // len(batch.row_ids)  # complementary masks repeat the batch
        return {"loss": loss.sum / self._reference, "head_rows": noisy.targets.numel(), "copies": copies}

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Divide the summed gradient by the global count, then clip it; drop a non-finite gradient.

        Without gradients the optimizer changes neither weights nor moments: the step is skipped.

        Args:
            gradient_clip_val, gradient_clip_algorithm: the Trainer's settings; None: clip by norm to
                `optim.gradient_clip_norm`.
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
        """Log the training curves if an optimizer step that is due has ended. Idempotent for a step.

        Lightning calls callbacks before the module's hooks, so the checkpoint callback calls this before it saves.
        """
        if self.global_step == self._step_before:
            return
        self._step_before = self.global_step
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step % every == 0 or self.global_step == self.trainer.max_steps):
            publish(self, self.training_values())

    def observe_micro_batch(self, batch: TokenBatch, noisy: NoisyBatch, scores: TokenScores) -> None:
        """Hook for subclasses: accumulate further training curves from a micro-batch."""

    def training_values(self) -> dict[str, float | Tensor]:
        """Values of the training curves over the log interval, by tag; starts the next interval."""
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
        """Metrics that accumulate training steps over the current log interval, by name. Saved in checkpoints."""
        return {"curves": self.curves}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore token count, interval sums and Lightning's batch counters.

        Lightning counts micro-batches, and their number per step may have changed since the checkpoint was written.
        """
        self.tokens_seen = checkpoint.get("tokens_seen", 0)
        if "loops" not in checkpoint:  # a checkpoint of weights only
            return
        group = self._data_group
        if (self.trainer.global_rank if group is None else torch.distributed.get_rank(group)) == 0:
            for name, sums in checkpoint.get("interval_sums", {}).items():
                set_sums(self.interval_metrics[name], sums)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        for counts in (progress["total"], progress["current"]):
            # in a checkpoint written inside a hook, the current batch is processed but not completed
            pending = counts["processed"] - counts["completed"]
            counts.update(ready=done, started=done, processed=done, completed=done - pending)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.end_step()
        checkpoint["interval_sums"] = {
            name: sums_of(metric, self._sum_over_ranks) for name, metric in self.interval_metrics.items()
        }
        checkpoint["tokens_seen"] = self.tokens_seen
        if not isinstance(self.trainer.strategy, PortableState):  # a run folder would contain the tokenizer
            checkpoint["tokenizer"] = self.tokenizer.files()

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, **_: Any
    ) -> Self:
        """Load the module of a checkpoint onto one device, for `trainer.validate` or `lit_illada.generate`.

        Args:
            checkpoint_path: a `.ckpt`, or a run folder, whose newest checkpoint is loaded.
            map_location: a device; None: the CPU.

        Raises:
            UserError: the path is not a checkpoint of a training run.
        """
        assert PretrainModule._load is not None, "import it as lit_illada.PretrainModule"
        return PretrainModule._load(Path(checkpoint_path), map_location)  # type: ignore[return-value]

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

    def configure_optimizers(self) -> Any:
        """Build the optimizer and its learning-rate schedule, which advances per optimizer step."""
        optimizer = build_optimizer(self.model, self.optim.optimizer)
        schedule = LearningRate(optimizer, self.optim.schedule, self.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _global_scale(self) -> float:
        """Factor that turns Lightning's mean over ranks and micro-batches into the sum over the global count.

        0 for a step without any token that carries loss. Sets `step_nll`, the step's cross-entropy in nats per masked
        token, and resets the step's sums.
        """
        count, nll, num_masked = self._sum_over_ranks(torch.as_tensor(self._step_sums)).tolist()
        self._step_sums = 0.0
        self.step_nll = nll / num_masked if num_masked else math.nan
        parts = num_data_ranks(self.trainer) * self.trainer.accumulate_grad_batches
        return self._reference * parts / count if count > 0 else 0.0

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(value, group=self._data_group, reduce_op="sum")  # type: ignore[return-value]

    def _schedule(self) -> LearningRate:
        return self.lr_schedulers()  # type: ignore[return-value]

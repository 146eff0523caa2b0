"""The base of the LightningModules: gradient normalisation and clipping, sharding, checkpoints, intervals of curves.

A subclass computes the loss of a micro-batch in `training_step` and the count that the summed gradient is divided by in
`global_count`.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torchmetrics import Metric

from lit_illada.errors import UserError
from lit_illada.training.checkpointing.portable import PortableState
from lit_illada.training.config.optim import OptimConfig
from lit_illada.training.distributed.gradients import clamp, scale, total_norm
from lit_illada.training.distributed.parallel import ShardedStrategy, num_data_ranks
from lit_illada.training.metrics import publish, set_sums, sums_of
from lit_illada.training.optim import build_optimizer
from lit_illada.training.ranked_module import RankedModule
from lit_illada.training.schedule import LearningRate
from lit_illada.training.user_trainer import reconcile


class TokenizerFiles(Protocol):
    """A tokenizer, as stored in checkpoints."""

    def files(self) -> dict[str, str]:
        """Contents by file name."""


class RunModule(RankedModule):
    """A training run of `model`, under the project's Trainer or any other Lightning Trainer.

    The Trainer's `accumulate_grad_batches` and `max_steps` default to the config's values. `gradient_clip_val` (0: no
    clipping) and `gradient_clip_algorithm` override `optim.gradient_clip_norm`; `log_every_n_steps` is the interval of
    the training curves. A Trainer whose batch differs from the config's raises UserError.

    The gradient of an optimizer step is that of (sum of losses) / (sum of counts), over all micro-batches and ranks.
    `training_step` returns the sum of losses divided by `_reference`. Between this loss and the gradient, Lightning
    divides by `accumulate_grad_batches` and calls backward; DDP or FSDP averages gradients over the data ranks, at the
    last micro-batch unless `parallel.reduce_every_micro_batch` is set; then `configure_gradient_clipping` replaces
    these divisors by the global count (`_global_scale`), clips, and drops a non-finite gradient.
    """

    # builds a module from a checkpoint; set by lit_illada.api.checkpoints, which knows the configs
    _load: ClassVar[Callable[[Path, Any], "RunModule"] | None] = None
    selected_by: ClassVar[str] = "val/nll_bound"
    """Validation metric, lower is better, by which `trainer.keep_best` retains checkpoints and a Reactive schedule
    detects a plateau."""

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        *,
        max_steps: int,
        batch_rows: int,
        tokenizer: TokenizerFiles,
        hparams: dict[str, Any],
        shard: Callable[[DeviceMesh], None] | None = None,
    ) -> None:
        """
        Args:
            model: the trained model.
            optim: optimizer, learning-rate schedule and clipping.
            max_steps: optimizer steps of the learning-rate schedule.
            batch_rows: rows per optimizer step, over all ranks.
            tokenizer: saved in the checkpoints of a Trainer that has no run folder.
            hparams: plain values only, saved in every checkpoint.
            shard: shards the model over a mesh and loads its weights; None if every rank holds the whole model.
        """
        super().__init__(model)
        self.optim = optim
        self.max_steps = max_steps
        self.batch_rows = batch_rows
        self.tokenizer = tokenizer
        self.gradient_norm = math.nan
        self.learning_rate = math.nan
        self.tokens_seen = 0  # training tokens so far, over all ranks
        self.validated_at: int | None = None
        self.unigram_cross_entropy = math.nan  # of the validation tokens, nats/token; NaN if unknown
        self.step_nll = math.nan  # of the last step, nats per masked token; NaN if the loss is no likelihood
        self._is_batch_checked = False
        self._shard = shard
        self._step_before = 0  # optimizer steps when the micro-batch in progress began
        # Summed over the step's micro-batches. Not a buffer: DDP would overwrite it with rank 0's.
        self._step_sums: Tensor | float = 0.0
        self._reference = 1.0  # divisor of the loss, until the global count is known
        # plain values only: checkpoints are read with weights_only=True, which rejects other objects
        self.save_hyperparameters(hparams, logger=False)

    def global_count(self) -> float:
        """The count of the step, over all micro-batches and ranks; starts the next step. Collective."""
        raise NotImplementedError

    def cost(self) -> dict[str, float]:
        """Costs of the run so far that the module counts itself, by name, over all ranks. Collective."""
        return {}

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

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._step_before = self.global_step

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

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
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

    def training_values(self) -> dict[str, float | Tensor]:
        """Values of the training curves over the log interval, by tag; starts the next interval."""
        return {"train/gradient_norm": self.gradient_norm, "train/learning_rate": self.learning_rate}

    @property
    def interval_metrics(self) -> dict[str, Metric]:
        """Metrics that accumulate training steps over the current log interval, by name. Saved in checkpoints."""
        return {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore token count, interval sums and Lightning's batch counters.

        Lightning counts micro-batches, and their number per step may have changed since the checkpoint was written.
        """
        self.tokens_seen = checkpoint.get("tokens_seen", 0)
        if "loops" not in checkpoint:  # a checkpoint of weights only
            return
        if self._data_rank == 0:
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
        assert RunModule._load is not None, "import it as lit_illada.PretrainModule"
        return RunModule._load(Path(checkpoint_path), map_location)  # type: ignore[return-value]

    def configure_optimizers(self) -> Any:
        """Build the optimizer and its learning-rate schedule, which advances per optimizer step."""
        optimizer = build_optimizer(self.model, self.optim.optimizer)
        schedule = LearningRate(optimizer, self.optim.schedule, self.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _global_scale(self) -> float:
        """Factor that turns Lightning's mean over ranks and micro-batches into the sum over the global count.

        0 for a step whose count is 0.
        """
        count = self.global_count()
        parts = num_data_ranks(self.trainer) * self.trainer.accumulate_grad_batches
        return self._reference * parts / count if count > 0 else 0.0

    def _schedule(self) -> LearningRate:
        return self.lr_schedulers()  # type: ignore[return-value]

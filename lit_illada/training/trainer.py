"""Builds Lightning's Trainer from the config of devices, precision, batch size and length."""

import logging
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from lit_illada.training.checkpointing.portable import DataParallel, OneDevice
from lit_illada.training.checkpointing.writer import CheckpointWriter
from lit_illada.training.config.parallel import Strategy
from lit_illada.training.config.trainer import Accelerator, TrainerConfig
from lit_illada.training.distributed.parallel import ShardedStrategy

log = logging.getLogger(__name__)

_SRUN_ADVICE = ".*`srun` command is available on your system but is not used.*"


def build_lightning_trainer(
    config: TrainerConfig, run_dir: Path, callbacks: Sequence[Callback], loggers: Sequence[Logger]
) -> Trainer:
    """Build Lightning's Trainer. Raises UserError for a configured device that is missing."""
    accelerator, precision = config.hardware()
    _quiet_lightning()
    strategy = config.parallel.resolve(config.world_size)
    log.info(
        "training on %s × %d, %s%s", accelerator, config.world_size, precision, f", {strategy}" if strategy else ""
    )
    return Trainer(
        accelerator=accelerator.value,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=_strategy(config, accelerator),
        # FSDP gathers a sharded model's weights in bfloat16: half the traffic of float32 weights under autocast
        precision="32-true" if config.is_sharded else precision.value,  # type: ignore[arg-type]
        max_steps=config.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=config.accumulation,
        # in micro-batches, counted across epochs
        val_check_interval=config.val_every_steps * config.accumulation,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=config.log_every_steps,
        use_distributed_sampler=False,
        # metric states created in inference mode could not be updated in place later
        inference_mode=False,
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        logger=list(loggers),
        plugins=[CheckpointWriter(is_async=config.checkpoint_async), *_cluster()],
        default_root_dir=run_dir,
    )


def _strategy(config: TrainerConfig, accelerator: Accelerator) -> ShardedStrategy | DataParallel | OneDevice:
    timeout = timedelta(seconds=config.timeout_s)
    match config.parallel.resolve(config.world_size):
        case Strategy.fsdp:
            return ShardedStrategy(config.parallel, timeout)
        case Strategy.ddp:
            # gradients that are views of the reduction's buckets need no second copy
            return DataParallel(timeout=timeout, gradient_as_bucket_view=True)
        case _:
            # torch.cuda.set_device, which Lightning calls, rejects a device without an index
            return OneDevice("cuda:0" if accelerator is Accelerator.gpu else "cpu")


def _cluster() -> list[SLURMEnvironment]:
    """Slurm's environment if srun started this process, without Lightning's requeueing.

    The script of `lit-illada launch`, or submitit, requeues jobs; two mechanisms would submit a job twice.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _SRUN_ADVICE)
        is_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if is_slurm else []


def _quiet_lightning() -> None:
    """Silence advice that does not apply: the data module resumes and sizes the loader itself."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for advice in (
        ".*WeightAveraging callback with a model that overrides the configure_model.*",
        # logged values are already equal on every rank, or measured by it
        ".*when logging on epoch level in distributed setting.*",
        ".*does not have many workers.*",
        ".*dataloader is not resumable.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*smaller than the logging interval.*",
        ".*isinstance.treespec, LeafSpec.*",
        _SRUN_ADVICE,
    ):
        warnings.filterwarnings("ignore", advice)

"""Builds the Trainer of a run with its callbacks."""

from collections.abc import Sequence

import torch
from lightning.pytorch import Callback, Trainer

from lit_illada.alignment.datamodule import AlignDataModule
from lit_illada.alignment.limit import ForwardLimit
from lit_illada.alignment.show import ShowCompletions, ShowPhase
from lit_illada.config import AlignConfig, PretrainConfig, RunConfig, SFTConfig
from lit_illada.cost.alignment import step_passes
from lit_illada.data.datamodule import PackedDataModule
from lit_illada.data.row_datamodule import RowDataModule
from lit_illada.data.sft_datamodule import SFTDataModule
from lit_illada.generation.text import complete_batch
from lit_illada.model.flops import training_flops
from lit_illada.model.lora import num_adapter_parameters
from lit_illada.model.transformer import Transformer
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.console import Console
from lit_illada.training.callbacks.divergence import DivergenceGuard
from lit_illada.training.callbacks.generations import ExactMatch, TextSamples
from lit_illada.training.callbacks.progress import ProgressBar, ProgressFile
from lit_illada.training.callbacks.skipped_shards import SkippedShards
from lit_illada.training.callbacks.stopping import GracefulStop, TimeLimit
from lit_illada.training.callbacks.throughput import Throughput
from lit_illada.training.callbacks.weight_average import WeightAverage
from lit_illada.training.checkpointing.saving import Checkpoints, Retention
from lit_illada.training.config.divergence import Rollback
from lit_illada.training.config.trainer import Precision
from lit_illada.training.loggers import build_loggers
from lit_illada.training.matmul_speed import matmul_flops_per_s
from lit_illada.training.run_module import RunModule
from lit_illada.training.trainer import build_lightning_trainer

_NUM_OPEN_ENDED = 4  # completions shown at validation where answers cannot be checked


def build_trainer(
    config: RunConfig,
    folder: RunFolder,
    module: RunModule,
    datamodule: RowDataModule | AlignDataModule,
    console: Console,
    stop: GracefulStop,
) -> tuple[Trainer, list[TimeLimit | ForwardLimit], Throughput]:
    """Build the Trainer with its callbacks; also return those that `training_run` reads (limits and throughput)."""
    options = config.trainer
    # retention for a rollback counts scheduled checkpoints only: those saved at a stop must not push them out
    counted_every_steps = options.checkpoint_every_steps if isinstance(options.on_divergence, Rollback) else 1
    checkpoints = Checkpoints(
        folder.checkpoints,
        options.checkpoint_every_steps,
        options.val_every_steps,
        Retention(options.keep_checkpoints, options.keep_every_steps, options.keep_best, counted_every_steps),
    )
    _, precision = options.hardware()
    num_adapters = num_adapter_parameters(config.model, config.lora)
    throughput = Throughput(
        lambda batch, head_rows, copies: training_flops(
            config.model, batch.layout, head_rows, num_adapters, copies=copies
        ),
        lambda device: matmul_flops_per_s(device, precision.dtype),
        options.log_every_steps,
    )
    limits: list[TimeLimit | ForwardLimit] = []
    if options.max_time_s is not None:
        limits.append(TimeLimit(options.max_time_s))
    if isinstance(config, AlignConfig) and config.max_forwards is not None:
        limits.append(ForwardLimit(config.max_forwards, step_passes(config)[1], config.alignment.updates))
    bar = ProgressBar(throughput, console)
    callbacks = [
        throughput,
        bar,
        *_build_shows(config, folder, module, datamodule, bar),
        DivergenceGuard(
            options.on_divergence,
            options.spikes,
            options.max_nonfinite_steps,
            checkpoints,
            len(folder.read_rollbacks()),
        ),
        stop,
        *limits,
        checkpoints,
        ProgressFile(folder.progress, throughput),
    ]
    if isinstance(datamodule, PackedDataModule) and (is_bad := datamodule.is_bad_shard) is not None:
        callbacks.append(SkippedShards(is_bad, options.log_every_steps))
    if options.ema_decay is not None:
        # last, so that callbacks after a validation see the averaged weights
        callbacks.append(WeightAverage(decay=options.ema_decay))
    trainer = build_lightning_trainer(options, folder.path, callbacks, build_loggers(config.logger, folder))
    return trainer, limits, throughput


def _build_shows(
    config: RunConfig,
    folder: RunFolder,
    module: RunModule,
    datamodule: RowDataModule | AlignDataModule,
    bar: ProgressBar,
) -> list[Callback]:
    """Build the callbacks that show texts, and the phase of an alignment run."""
    if isinstance(config, AlignConfig):
        return [ShowPhase(bar), ShowCompletions(folder.samples, folder.answers, config.trainer.val_every_steps)]
    assert isinstance(config, PretrainConfig | SFTConfig)
    assert isinstance(datamodule, RowDataModule)
    return [_build_generations(config, folder, module, datamodule)]


def _build_generations(
    config: PretrainConfig | SFTConfig, folder: RunFolder, module: RunModule, datamodule: RowDataModule
) -> Callback:
    """Build the callback that generates at every validation: continuations (pretraining) or answers (fine-tuning)."""
    model, tokenizer = module.model, datamodule.tokenizer
    assert isinstance(model, Transformer)
    generation = (config.samples if isinstance(config, PretrainConfig) else config.evaluation).generation
    accelerator, precision = config.trainer.hardware()
    is_autocast = precision is Precision.bf16_mixed and not config.trainer.is_sharded

    @torch.autocast(accelerator.device.type, torch.bfloat16, enabled=is_autocast)
    def complete(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        with module.whole_weights():
            return complete_batch(model, tokenizer, prompts, generation).texts()

    if isinstance(config, PretrainConfig):
        prompts = [(text, tokenizer.encode(text)) for text in config.samples.prompts]
        return TextSamples(prompts, complete, tokenizer, folder.samples, is_batched=False)
    assert isinstance(datamodule, SFTDataModule)
    num_examples = config.evaluation.num_examples
    if num_examples and datamodule.difficulties:
        return ExactMatch(datamodule, num_examples, complete, folder.answers)
    # open-ended conversations have no reference answers
    prompts = [
        (tokenizer.decode(ids), ids) for ids in datamodule.validation_prompts(min(num_examples, _NUM_OPEN_ENDED))
    ]
    return TextSamples(prompts, complete, tokenizer, folder.samples, is_batched=True)

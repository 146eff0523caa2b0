"""Builds model, objective, data module, LightningModule and Trainer from the config dataclasses."""

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lit_illada.alignment.datamodule import AlignDataModule
from lit_illada.alignment.held_out import HeldOut
from lit_illada.alignment.limit import ForwardLimit
from lit_illada.alignment.module import AlignModule
from lit_illada.alignment.prompts import check_lengths, preference_prompts, task_prompts
from lit_illada.alignment.reward_worker import RewardWorker
from lit_illada.alignment.rewards import RewardConfig
from lit_illada.alignment.rollout import Writer
from lit_illada.alignment.show import ShowCompletions, ShowPhase
from lit_illada.batch import TokenBatch
from lit_illada.config import AlignConfig, ObjectiveRunConfig, PretrainConfig, RunConfig, SFTConfig
from lit_illada.data.datamodule import PackedDataModule
from lit_illada.data.row_datamodule import RowDataModule
from lit_illada.data.sft.chat_template import ChatTemplate
from lit_illada.data.sft_datamodule import SFTDataModule
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.generation.text import complete_batch
from lit_illada.model.config import ModelConfig, num_parameters
from lit_illada.model.flops import training_flops
from lit_illada.model.initial import InitialWeights, fill
from lit_illada.model.lora import add_lora, num_adapter_parameters
from lit_illada.model.transformer import Transformer
from lit_illada.objective.autoregressive import AutoregressiveObjective
from lit_illada.objective.config import AutoregressiveObjectiveConfig, DiffusionObjectiveConfig
from lit_illada.objective.diffusion import DiffusionObjective
from lit_illada.objective.loss import Objective, ScoreFn
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.console import Console
from lit_illada.schema import to_tree
from lit_illada.scoring.likelihood import Likelihood, MaskGrid, RowScores, nll, nll_bound
from lit_illada.training.callbacks.divergence import DivergenceGuard
from lit_illada.training.callbacks.generations import ExactMatch, TextSamples
from lit_illada.training.callbacks.progress import ProgressBar, ProgressFile
from lit_illada.training.callbacks.skipped_shards import SkippedShards
from lit_illada.training.callbacks.stopping import GracefulStop, TimeLimit
from lit_illada.training.callbacks.throughput import Throughput
from lit_illada.training.checkpointing.saving import Checkpoints, Retention
from lit_illada.training.compiling import is_worth_compiling
from lit_illada.training.config.divergence import Rollback
from lit_illada.training.config.trainer import Precision
from lit_illada.training.distributed.parallel import prepare_block, shard
from lit_illada.training.loggers import build_loggers
from lit_illada.training.matmul_speed import matmul_flops_per_s
from lit_illada.training.module import PretrainModule
from lit_illada.training.run_module import RunModule
from lit_illada.training.sft_module import SFTModule
from lit_illada.training.trainer import build_lightning_trainer

_NUM_OPEN_ENDED = 4  # completions shown at validation where answers cannot be checked


def build_model(config: ModelConfig, seed: int) -> Transformer:
    """Build the model with initial weights that depend on the seed only."""
    model = Transformer(config)
    model.init_weights(seed)
    return model


def build_objective(
    config: DiffusionObjectiveConfig | AutoregressiveObjectiveConfig, tokenizer: Tokenizer, seed: int, batch_rows: int
) -> Objective:
    """Build the training objective. seed: key of its noise. batch_rows: rows per optimizer step, over all ranks."""
    match config:
        case DiffusionObjectiveConfig():
            return DiffusionObjective(config, tokenizer.mask_token_id, seed, batch_rows)
        case AutoregressiveObjectiveConfig():
            return AutoregressiveObjective(config, tokenizer.eos_token_id)


def build_datamodule(config: PretrainConfig) -> PackedDataModule:
    """Build the data module of a pretraining run; the data set is prepared or opened later."""
    trainer = config.trainer
    return PackedDataModule(
        config.data,
        seed=config.seed,
        batch_rows=trainer.batch_rows,
        micro_batch_rows=trainer.micro_batch_rows,
        total_steps=trainer.max_steps,
        validation_rows=trainer.val_rows,
    )


def build_sft_datamodule(config: SFTConfig, tokenizer: Tokenizer) -> SFTDataModule:
    """Build the data module of a fine-tuning run. tokenizer: that of the model."""
    trainer = config.trainer
    return SFTDataModule(
        config.sft_data,
        tokenizer,
        seed=config.seed,
        batch_rows=trainer.batch_rows,
        micro_batch_rows=trainer.micro_batch_rows,
        total_steps=trainer.max_steps,
        validation_rows=trainer.val_rows,
    )


def build_align_datamodule(config: AlignConfig, tokenizer: Tokenizer) -> AlignDataModule:
    """Build the data module of a resolved alignment config. tokenizer: that of the model.

    Raises UserError for a task without problems, unusable pairs and prompts that are too long.
    """
    template = ChatTemplate(config.template, tokenizer)
    trainer = config.trainer
    if config.preferences is None:
        prompts = task_prompts(config.task, config.problems, template, trainer.val_rows)
    else:
        prompts = preference_prompts(config.preferences, template, trainer.val_rows)
    longest = config.model.max_position_embeddings
    check_lengths([*prompts.train, *prompts.held_out], config.generation.max_new_tokens, longest)
    return AlignDataModule(
        prompts,
        tokenizer,
        seed=config.seed,
        group_size=config.alignment.group_size,
        updates=config.alignment.updates,
        batch_rows=trainer.batch_rows,
        micro_batch_rows=trainer.micro_batch_rows,
        total_steps=trainer.max_steps,
        rollout_rows=config.rollout_rows,
    )


def build_align_module(
    config: AlignConfig, datamodule: AlignDataModule, weights: Mapping[str, Tensor] | None
) -> AlignModule:
    """Build the LightningModule of a resolved alignment config. weights: as for `build_module`."""
    options, tokenizer = config.trainer, datamodule.tokenizer
    model, shard_model = _build_run_model(config, weights)
    template, reward = ChatTemplate(config.template, tokenizer), config.alignment.reward
    write = partial(Writer, tokenizer, template, batch_rows=config.rollout_rows, seed=config.seed)
    verdict = RewardConfig(time_limit_s=reward.time_limit_s)
    has_task = config.preferences is None
    return AlignModule(
        model,
        config.alignment,
        config.optim,
        prompt_at=datamodule.prompt_at,
        writer=write(config.generation),
        rewards=RewardWorker(reward, config.task.check) if has_task else None,
        held_out=HeldOut(
            datamodule.prompts.held_out,
            write(config.held_out_generation),
            RewardWorker(verdict, config.task.check) if has_task else None,
            config.task.difficulty_name,
        ),
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        seed=config.seed,
        max_steps=options.max_steps,
        batch_rows=options.batch_rows,
        micro_batch_rows=options.micro_batch_rows,
        num_adapters=num_adapter_parameters(config.model, config.lora),
        tokenizer=tokenizer,
        hparams={"config": to_tree(config), "tokenizer_sha256": tokenizer.sha256},
        shard=shard_model,
    )


def build_module(
    config: PretrainConfig | SFTConfig,
    tokenizer: Tokenizer,
    unigram_cross_entropy: float,
    weights: Mapping[str, Tensor] | None,
) -> PretrainModule:
    """Build the LightningModule of a resolved config.

    Args:
        unigram_cross_entropy: of the validation text, nats/token; NaN if unknown.
        weights: initial weights by name; missing ones (e.g. LoRA) get their normal initialisation. None: Lightning
            will load the run's checkpoint.
    """
    options = config.trainer
    model, shard_model = _build_run_model(config, weights)
    make = partial(SFTModule, eos_token_id=tokenizer.eos_token_id) if isinstance(config, SFTConfig) else PretrainModule
    return make(
        model,
        build_objective(config.objective, tokenizer, config.seed, options.batch_rows),
        config.optim,
        build_validation_score(config, tokenizer),
        Likelihood(torch.from_numpy(tokenizer.bytes_per_token())),
        unigram_cross_entropy=unigram_cross_entropy,
        max_steps=options.max_steps,
        batch_rows=options.batch_rows,
        tokenizer=tokenizer,
        hparams={"config": to_tree(config), "tokenizer_sha256": tokenizer.sha256},
        shard=shard_model,
    )


def _build_run_model(
    config: RunConfig, weights: Mapping[str, Tensor] | None
) -> tuple[Transformer, Callable[[DeviceMesh], None] | None]:
    """Build the run's model and, for a sharded run, the function that shards it over a device mesh.

    A sharded model is on the meta device until that function has run.
    """
    options = config.trainer
    if options.is_sharded:
        with torch.device("meta"):
            model = Transformer(config.model)
    else:
        model = build_model(config.model, config.seed)
        if weights:
            fill(model, weights)
    if config.lora is not None:
        add_lora(model, config.lora, config.seed)
    is_compiled = _is_compiled(config)
    if not options.is_sharded:
        for layer in model.model.layers:
            prepare_block(layer, options.parallel, is_compiled=is_compiled)
        return model, None
    _, precision = options.hardware()
    if weights is not None:
        weights = ChainMap(*cast(Any, (weights, InitialWeights(model, config.model, config.seed))))
    shard_model = partial(
        shard, model, config=options.parallel, param_dtype=precision.dtype, weights=weights, is_compiled=is_compiled
    )
    return model, shard_model


def _is_compiled(config: RunConfig) -> bool:
    """The choice of the config; null: by the length of the run, and never for alignment, whose row lengths vary."""
    options = config.trainer
    if options.compile is not None or not isinstance(config, PretrainConfig | SFTConfig):
        return bool(options.compile)
    row_length = (config.sft_data if isinstance(config, SFTConfig) else config.data).row_length
    num_tokens = options.max_steps * options.batch_rows * row_length / options.world_size
    accelerator, _ = options.hardware()
    return is_worth_compiling(accelerator.device, 6 * num_parameters(config.model) * num_tokens)


def build_validation_score(
    config: ObjectiveRunConfig, tokenizer: Tokenizer
) -> Callable[[ScoreFn, TokenBatch], RowScores]:
    """Return the score of validation rows: the bound on fixed masks, or the exact likelihood of a causal model."""
    if config.model.is_causal:
        return partial(nll, eos_token_id=tokenizer.eos_token_id)
    # a block of one token has only one mask
    num_draws = 1 if config.block_length == 1 else config.trainer.val_draws
    grid = MaskGrid(num_draws, block_length=config.block_length)
    return partial(nll_bound, grid=grid, mask_token_id=tokenizer.mask_token_id)


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
    accelerator, precision = options.hardware()
    peak_flops_per_s = matmul_flops_per_s(accelerator.device, precision.dtype)
    num_adapters = num_adapter_parameters(config.model, config.lora)
    throughput = Throughput(
        lambda batch, head_rows, copies: training_flops(
            config.model, batch.layout, head_rows, num_adapters, copies=copies
        ),
        peak_flops_per_s,
        options.log_every_steps,
    )
    limits: list[TimeLimit | ForwardLimit] = []
    if options.max_time_s is not None:
        limits.append(TimeLimit(options.max_time_s))
    if isinstance(config, AlignConfig) and config.max_forwards is not None:
        limits.append(ForwardLimit(config.max_forwards))
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
        callbacks.append(EMAWeightAveraging(decay=options.ema_decay))
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

"""From dataclasses to objects: the one place that knows both."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from torch import nn
from torch.utils.tensorboard.summary import hparams

from lit_illada.batch import TokenBatch
from lit_illada.board import LAYOUT
from lit_illada.config import PretrainConfig, from_tree, to_tree
from lit_illada.data.datamodule import PackedDataModule
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.generation.block import Commit, generate
from lit_illada.generation.config import GenerationConfig
from lit_illada.model.config import ModelConfig
from lit_illada.model.flops import training_flops
from lit_illada.model.transformer import Transformer, whole_row_logits
from lit_illada.objective import (
    AutoregressiveObjective,
    AutoregressiveObjectiveConfig,
    DiffusionObjective,
    DiffusionObjectiveConfig,
    Objective,
)
from lit_illada.run_folder import RunFolder, flatten
from lit_illada.scoring.config import ScoringConfig
from lit_illada.scoring.likelihood import Likelihood, MaskGrid, RowScores, ScoreFn, nll, nll_bound
from lit_illada.scoring.model import ScoringModel
from lit_illada.scoring.scorer import Scorer
from lit_illada.training.callbacks import GracefulStop, NonFiniteGuard, ProgressBar, TextSamples, Throughput
from lit_illada.training.checkpoint import Checkpoints, latest_checkpoint, read_checkpoint
from lit_illada.training.module import PretrainModule
from lit_illada.training.trainer import Precision, make_trainer

log = logging.getLogger(__name__)


def resolve(config: PretrainConfig, tokenizer: Tokenizer) -> PretrainConfig:
    """The config with what only the tokenizer knows filled in."""
    return dataclasses.replace(config, model=config.model.with_vocab_size(tokenizer.vocab_size))


def build_model(config: ModelConfig, seed: int) -> Transformer:
    """The model with its initial weights, a function of the seed alone."""
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def build_objective(
    config: DiffusionObjectiveConfig | AutoregressiveObjectiveConfig, tokenizer: Tokenizer, seed: int, batch_rows: int
) -> Objective:
    match config:
        case DiffusionObjectiveConfig():
            return DiffusionObjective(config, tokenizer.mask_token_id, seed, batch_rows)
        case AutoregressiveObjectiveConfig():
            return AutoregressiveObjective(config, tokenizer.eos_token_id)


def build_datamodule(config: PretrainConfig) -> PackedDataModule:
    trainer = config.trainer
    return PackedDataModule(
        config.data,
        seed=config.seed,
        batch_rows=trainer.batch_rows,
        micro_batch_rows=trainer.micro_batch_rows,
        total_steps=trainer.max_steps,
        validation_rows=trainer.val_rows,
    )


def build_module(config: PretrainConfig, datamodule: PackedDataModule) -> PretrainModule:
    """The Lightning module of a resolved config, on initial weights."""
    tokenizer = datamodule.tokenizer
    model = build_model(config.model, config.seed)
    if config.trainer.compile:
        for layer in model.model.layers:
            layer.compile()
    return PretrainModule(
        model,
        build_objective(config.objective, tokenizer, config.seed, config.trainer.batch_rows),
        config.optim,
        build_yardstick(config, tokenizer),
        Likelihood(torch.from_numpy(tokenizer.bytes_per_token())),
        unigram_entropy=datamodule.unigram_entropy(),
        max_steps=config.trainer.max_steps,
        log_every_steps=config.trainer.log_every_steps,
        hparams={"config": to_tree(config), "tokenizer_sha256": tokenizer.sha256},
    )


def build_yardstick(config: PretrainConfig, tokenizer: Tokenizer) -> Callable[[ScoreFn, TokenBatch], RowScores]:
    """How a validation row is scored: the bound on fixed masks, or the exact likelihood of a causal model."""
    if config.model.is_causal:
        return partial(nll, eos_token_id=tokenizer.eos_token_id)
    return partial(nll_bound, grid=MaskGrid(config.trainer.val_draws), mask_token_id=tokenizer.mask_token_id)


def build_trainer(
    config: PretrainConfig, folder: RunFolder, module: PretrainModule, tokenizer: Tokenizer, console: Console
) -> tuple[Trainer, GracefulStop]:
    """The trainer with its callbacks, and the callback that knows whether the run was asked to stop."""
    options = config.trainer
    checkpoints = Checkpoints(
        folder.checkpoints, options.checkpoint_every_steps, options.keep_checkpoints, options.val_every_steps
    )
    accelerator = options.accelerator.resolve()
    is_bf16 = options.precision.resolve(accelerator) is Precision.bf16_mixed
    throughput = Throughput(
        lambda batch, head_rows: training_flops(config.model, batch.layout, head_rows),
        matmul_flops_per_s(accelerator.device, torch.bfloat16 if is_bf16 else torch.float32),
        options.log_every_steps,
    )
    stop = GracefulStop(checkpoints)
    callbacks = [
        throughput,
        ProgressBar(throughput, console),
        TextSamples(
            config.samples.prompts,
            partial(_continued, module.model, tokenizer, config.samples.generation),
            folder.samples,
        ),
        NonFiniteGuard(options.max_nonfinite_steps, checkpoints),
        stop,
        checkpoints,
    ]
    if options.ema_decay is not None:
        callbacks.insert(0, EMAWeightAveraging(decay=options.ema_decay))
    logger = TensorBoardLogger(folder.path.parent, name=folder.path.name, version="", default_hp_metric=False)
    return make_trainer(options, folder.path, callbacks, logger), stop


def complete(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    config: GenerationConfig,
    on_commit: Callable[[Commit], None] | None = None,
) -> list[int]:
    """The ids that continue a prompt, without the stop token. Deterministic: the config carries the seed."""
    if model.config.is_causal:
        raise UserError("the model is causal; the block sampler generates with bidirectional ones only")
    device = model.lm_head_weight.device
    was_training = model.training
    model.eval()
    generation = generate(
        whole_row_logits(model),
        torch.tensor([tokenizer.encode(prompt)], dtype=torch.int64, device=device),
        config,
        mask_token_id=tokenizer.mask_token_id,
        stop_token_ids=[tokenizer.eos_token_id],
        max_position_embeddings=model.config.max_position_embeddings,
        generator=torch.Generator(device).manual_seed(config.seed),
        on_commit=on_commit,
    )
    model.train(was_training)
    return generation.texts()[0]


def _continued(model: nn.Module, tokenizer: Tokenizer, config: GenerationConfig, prompt: str) -> str:
    assert isinstance(model, Transformer)
    return prompt + tokenizer.decode(complete(model, tokenizer, prompt, config))


def load_checkpoint(path: Path, device: torch.device) -> tuple[Transformer, Tokenizer]:
    """The model and tokenizer of a run folder (its newest checkpoint) or of one checkpoint file."""
    if path.is_dir():
        folder = RunFolder.open(path)
        newest = latest_checkpoint(folder.checkpoints)
        if newest is None:
            raise UserError(f"{path}: no checkpoint there yet")
        path = newest
    else:
        folder = RunFolder.of_checkpoint(path)
    content = read_checkpoint(path)
    try:
        hparams, weights = content["hyper_parameters"], content["state_dict"]
        config = from_tree(PretrainConfig, hparams["config"])
    except KeyError as error:
        raise UserError(f"{path}: not a checkpoint of lit-illada (no {error})") from error
    tokenizer = Tokenizer.load(folder.tokenizer)
    if tokenizer.sha256 != hparams["tokenizer_sha256"]:
        raise UserError(f"{folder.tokenizer}: not the tokenizer that {path.name} was trained with")
    model = Transformer(config.model)
    model.load_state_dict(
        {key.removeprefix("model."): value for key, value in weights.items() if key.startswith("model.")}
    )
    return model.to(device).eval(), tokenizer


def build_scorer(model: Transformer, tokenizer: Tokenizer, config: ScoringConfig) -> Scorer:
    """A model as scoring asks it: bidirectional ones by every rule of a diffusion model, causal ones exactly."""
    asked = ScoringModel(
        score=model,
        logits=model,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        max_length=model.config.max_position_embeddings,
        is_causal=model.config.is_causal,
        device=model.lm_head_weight.device,
    )
    return Scorer(asked, tokenizer.encode, config)


def start_board(trainer: Trainer, config: PretrainConfig) -> None:
    """Give TensorBoard the charts' layout and the hyper-parameters, whose last metrics its HParams tab compares."""
    logger = trainer.logger
    if not isinstance(logger, TensorBoardLogger) or not trainer.is_global_zero:
        return
    logger.experiment.add_custom_scalars(LAYOUT)
    # not through the logger, which would begin every metric's curve with a value made up
    metrics = dict.fromkeys(("val/nll_bound", "val/bits_per_byte"), math.nan)
    for summary in hparams(flatten(to_tree(config)), metrics):
        logger.experiment._get_file_writer().add_summary(summary)


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """What a square matrix product reaches on the device now: the best of a few, operations a second."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    best_s = math.inf
    for _ in range(8):
        started_at = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best_s = min(best_s, time.perf_counter() - started_at)
    return 2 * size**3 / best_s

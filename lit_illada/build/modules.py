"""Builds the LightningModule of each kind of training."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from lit_illada.alignment.datamodule import AlignDataModule
from lit_illada.alignment.held_out import HeldOut
from lit_illada.alignment.module import AlignModule
from lit_illada.alignment.reward_worker import RewardWorker
from lit_illada.alignment.rewards import RewardConfig
from lit_illada.alignment.rollout import RolloutSampler
from lit_illada.batch import TokenBatch
from lit_illada.build.models import build_objective, build_run_model
from lit_illada.config import AlignConfig, ObjectiveRunConfig, PretrainConfig, SFTConfig
from lit_illada.data.sft.chat_template import ChatTemplate
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.model.lora import num_adapter_parameters
from lit_illada.objective.loss import ScoreFn
from lit_illada.schema import to_tree
from lit_illada.scoring.likelihood import Likelihood, nll, nll_bound
from lit_illada.scoring.mask_grid import MaskGrid, RowScores
from lit_illada.training.module import PretrainModule
from lit_illada.training.sft_module import SFTModule


def build_align_module(
    config: AlignConfig, datamodule: AlignDataModule, weights: Mapping[str, Tensor] | None
) -> AlignModule:
    """Build the LightningModule of a resolved alignment config. weights: as for `build_module`."""
    options, tokenizer = config.trainer, datamodule.tokenizer
    model, shard_model = build_run_model(config, weights)
    template, reward = ChatTemplate(config.template, tokenizer), config.alignment.reward
    sampler = partial(RolloutSampler, tokenizer, template, batch_rows=config.rollout_rows, seed=config.seed)
    verdict = RewardConfig(time_limit_s=reward.time_limit_s, on_failure=reward.on_failure)
    has_task = config.preferences is None
    return AlignModule(
        model,
        config.alignment,
        config.optim,
        prompt_at=datamodule.prompt_at,
        sampler=sampler(config.generation),
        rewards=RewardWorker(reward, config.task.check) if has_task else None,
        held_out=HeldOut(
            datamodule.prompts.held_out,
            sampler(config.held_out_generation),
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
    model, shard_model = build_run_model(config, weights)
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

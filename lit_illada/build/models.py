"""Builds models, sharded or whole, and training objectives from their configs."""

from collections import ChainMap
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lit_illada.config import PretrainConfig, RunConfig, SFTConfig
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.model.config import ModelConfig, num_parameters
from lit_illada.model.initial import InitialWeights, fill
from lit_illada.model.lora import add_lora
from lit_illada.model.transformer import Transformer
from lit_illada.objective.autoregressive import AutoregressiveObjective
from lit_illada.objective.config import AutoregressiveObjectiveConfig, DiffusionObjectiveConfig
from lit_illada.objective.diffusion import DiffusionObjective
from lit_illada.objective.loss import Objective
from lit_illada.training.compiling import is_worth_compiling
from lit_illada.training.distributed.parallel import prepare_block, shard


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


def build_run_model(
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

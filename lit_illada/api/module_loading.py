"""Rebuilds the LightningModule of a training run from one of its checkpoints."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from lit_illada import build
from lit_illada.checkpoints.open import checkpoint_file, open_checkpoint
from lit_illada.config import PretrainConfig, SFTConfig
from lit_illada.errors import UserError
from lit_illada.schema import from_tree
from lit_illada.training.checkpointing.portable import load_model_state
from lit_illada.training.checkpointing.reading import read_checkpoint
from lit_illada.training.config.parallel import ParallelConfig
from lit_illada.training.module import PretrainModule


def load_module(path: str | Path, map_location: Any = None) -> PretrainModule:
    """The module of a checkpoint, whole on one device, whatever devices it was trained on.

    path: a `.ckpt` (file or folder) of any Trainer, or a run folder (its newest). map_location: a device; None is the
    CPU. Raises UserError for a path without a checkpoint, for a damaged one, and for a converted folder, whose weights
    come without a training run.
    """
    file = checkpoint_file(Path(path))
    opened = open_checkpoint(file)
    if file.suffix == ".safetensors":
        raise UserError(f"{path} holds weights alone, of no training run: use lit_illada.load_checkpoint")
    content = read_checkpoint(file)
    tree = content["hyper_parameters"]["config"]
    schema = SFTConfig if "sft_data" in tree else PretrainConfig
    config = from_tree(schema, tree)
    trainer = dataclasses.replace(config.trainer, devices=1, num_nodes=1, parallel=ParallelConfig())
    config = dataclasses.replace(config, trainer=trainer)
    module = build.make_module(config, opened.tokenizer, float("nan"), is_resumed=True)
    load_model_state(module, content["state_dict"])
    return module if map_location is None else module.to(torch.device(map_location))


PretrainModule._load = load_module

"""Configs of runs that start from a checkpoint."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lit_illada.checkpoints.open import Checkpoint, open_checkpoint
from lit_illada.config import AlignConfig, PretrainConfig, SFTConfig, load
from lit_illada.config_files import chooses_file, compose_files
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.model.config import ModelConfig
from lit_illada.overrides import parse_assignment
from lit_illada.run_folder import RunFolder
from lit_illada.schema import to_tree

# fields that may differ in a run that starts from the weights; all others determine what the weights mean
_FREE = {"is_causal", "predicts_next", "block_length", "attention", "max_position_embeddings", "initializer_range"}


def load_pretrain(overrides: Sequence[str]) -> tuple[PretrainConfig, Checkpoint | None]:
    """Load the config of a new pretraining run and open the checkpoint of an `init_from` override; None without one."""
    overrides, opened = add_model_of_checkpoint(overrides)
    config: PretrainConfig = load("pretrain", overrides)
    return config, opened


def add_model_of_checkpoint(overrides: Sequence[str]) -> tuple[list[str], Checkpoint | None]:
    """Overrides of a pretraining run with the model of its `init_from` before them, and that checkpoint, opened.

    Without `init_from` the overrides are unchanged. The checkpoint determines the model, so `model=` cannot be given;
    `model.is_causal=false` still can, also by a file such as experiment=adapt.
    """
    given = next((override for override in overrides[::-1] if override.startswith("init_from=")), "init_from=null")
    path = parse_assignment(given).value
    if path is None or not str(path):
        return list(overrides), None
    if chosen := next((override for override in overrides if override.startswith("model=")), None):
        raise UserError(f"{chosen} and {given}: the checkpoint determines the model: leave out {chosen}")
    opened = open_checkpoint(Path(str(path)))
    # null, booleans and numbers are the same in JSON and in Hydra's grammar
    by_files = compose_files("pretrain", [each for each in overrides if chooses_file(each)]).get("model") or {}
    # predicts_next also decides is_causal, since no file repeats the default
    set_by_files = _FREE & {*by_files, *(["is_causal"] if "predicts_next" in by_files else [])}
    model = {name: value for name, value in _without_blocks(opened.model).items() if name not in set_by_files}
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in model.items()}
    return [*(f"model.{name}={value}" for name, value in values.items()), *_in_blocks(opened, overrides)], opened


def load_sft(base: str | Path, overrides: Sequence[str] = ()) -> tuple[SFTConfig, Checkpoint]:
    """Open the checkpoint `base` and load the config of a fine-tuning run that starts from it.

    The model is that of the checkpoint, with the overrides of fields that its weights do not determine, such as
    model.is_causal=false. Blocks of block diffusion stay, unless overrides change objective.block_length.
    """
    opened = open_checkpoint(Path(base))
    model = {**_without_blocks(opened.model), **_model_overrides(overrides)}
    config: SFTConfig = load("sft", _in_blocks(opened, overrides), {"init_from": str(base), "model": model})
    return config, opened


def load_align(base: str | Path, overrides: Sequence[str] = ()) -> tuple[AlignConfig, Checkpoint]:
    """Open the checkpoint `base` and load the config of an alignment run that starts from it."""
    opened = open_checkpoint(Path(base))
    config: AlignConfig = load("align", overrides, {"init_from": str(base), "model": to_tree(opened.model)})
    return config.resolve(), opened


def check_fits(checkpoint: Checkpoint, model: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raise UserError unless the weights fit a run with this model and tokenizer."""
    named = [item.name for item in fields(ModelConfig) if item.name not in _FREE]
    different = [name for name in named if getattr(checkpoint.model, name) != getattr(model, name)]
    if different:
        listed = ", ".join(
            f"{n}: {getattr(checkpoint.model, n)} there, {getattr(model, n)} in the config" for n in different
        )
        raise UserError(f"{checkpoint.path} contains another model ({listed}): leave out model= and those overrides")
    if checkpoint.tokenizer.sha256 != tokenizer.sha256:
        folder = RunFolder.of_checkpoint(checkpoint.path).tokenizer
        raise UserError(
            f"the data set was prepared with another tokenizer than {checkpoint.path}: prepare one with "
            f"data/tokenizer=load data.tokenizer.path={folder}"
        )


def _without_blocks(model: ModelConfig) -> dict[str, Any]:
    """The model as a tree; objective.block_length sets its block_length."""
    return {**to_tree(model), "block_length": None}


def _in_blocks(checkpoint: Checkpoint, overrides: Sequence[str]) -> list[str]:
    """The overrides, after one with the blocks that the checkpoint was trained in, if any."""
    length = checkpoint.model.block_length
    if length is None or "objective=autoregressive" in overrides:
        return list(overrides)
    return [f"objective.block_length={length}", *overrides]


def _model_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Values of the overrides model.FIELD=VALUE. Raises UserError for a field that the weights determine."""
    parsed = [parse_assignment(override) for override in overrides if override.lstrip("+").startswith("model.")]
    values = {each.key.removeprefix("model."): each.value for each in parsed}
    if fixed := next((name for name in values if name not in _FREE - {"block_length"}), None):
        free = ", ".join(sorted(_FREE - {"block_length"}))
        raise UserError(f"model.{fixed} is that of the checkpoint: leave it out; only {free} can be set")
    return values

"""Opening of lit-illada checkpoints, and the config of runs that start from one.

A `.ckpt` file or folder of a run contains everything that resuming needs; the `.safetensors` file of a converted folder
contains the weights only. Both are in `checkpoints/`, next to the `tokenizer/` they were trained with.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_illada.checkpoints.hf import (
    CONFIG_FILE,
    Renamed,
    UnaccountedError,
    expected_shapes,
    load_model,
    unaccounted,
)
from lit_illada.checkpoints.safetensors_io import TensorFiles, write_file
from lit_illada.config import AlignConfig, PretrainConfig, SFTConfig, load
from lit_illada.config_files import chooses_file, compose_files
from lit_illada.data.tokenizer import CONFIG_FILE as TOKENIZER_CONFIG
from lit_illada.data.tokenizer import TOKENIZER_FILE, Tokenizer
from lit_illada.errors import UserError
from lit_illada.generation.text import LanguageModel
from lit_illada.model.config import ModelConfig
from lit_illada.model.lora import MergedTensors
from lit_illada.model.weight_check import CheckedTensors
from lit_illada.overrides import parse_assignment
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.checksums import CHECKSUMS_FILE, DamagedFileError, check_folder, write_folder_checksums
from lit_illada.runtime.files import parse_json
from lit_illada.schema import from_tree, to_tree
from lit_illada.training.checkpointing.files import is_checkpoint, latest_checkpoint
from lit_illada.training.checkpointing.reading import Weights, read_checkpoint

WEIGHTS_FILE = "weights.safetensors"
_METADATA = "lit_illada"
# fields that may differ in a run that starts from the weights; all others determine what the weights mean
_FREE = {"is_causal", "predicts_next", "block_length", "attention", "max_position_embeddings", "initializer_range"}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint whose weights are not read yet."""

    path: Path
    """The `.ckpt` or `.safetensors`."""
    model: ModelConfig
    tokenizer: Tokenizer
    tensors: Mapping[str, Tensor]
    """Weights by parameter name, memory-mapped and checked on access."""
    state: Mapping[str, Any] | None
    """All that a `.ckpt` contains, memory-mapped; None for a converted folder, which has weights only."""


def open_checkpoint(path: Path, process: int = 0, num_processes: int = 1) -> Checkpoint:
    """Open a checkpoint, the newest one of a run folder, or that of a converted folder.

    Files are verified against their checksums if they have any; each of `num_processes` processes verifies a part of
    the files of a sharded checkpoint. Raises UserError for a checkpoint that is missing, damaged or inconsistent
    with its config.
    """
    file = checkpoint_file(path)
    folder = RunFolder.of_checkpoint(file)
    is_converted = file.suffix == ".safetensors"
    state = None if is_converted else read_checkpoint(file, process, num_processes)
    contents = _read_weights(file, folder) if state is None else _parse_state(state, file)
    model, sha256, tensors, shapes, saved = contents
    expected = expected_shapes(model, str(file), len(shapes))
    if problems := unaccounted({name: shapes[name] for name in tensors}, expected, {}):
        raise UnaccountedError(str(file), problems)
    tokenizer = Tokenizer.load(folder.tokenizer) if saved is None else saved
    if tokenizer.sha256 != sha256:
        raise UserError(
            f"{folder.tokenizer if saved is None else file}: not the tokenizer that {file.name} was trained with"
        )
    return Checkpoint(file, model, tokenizer, tensors, state)


def load_checkpoint(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> LanguageModel:
    """Load the model, in evaluation mode on `device`, and its tokenizer.

    path: a run folder (its newest checkpoint), a converted folder or one checkpoint. dtype: of the weights; None: as
    they are stored. Raises UserError for a path without a checkpoint, and for a damaged one.
    """
    checkpoint = open_checkpoint(Path(path))
    model = load_model(checkpoint.model, checkpoint.tensors, torch.device(device), dtype).eval()
    return LanguageModel(model, checkpoint.tokenizer)


def write_weights(
    folder: Path, model: ModelConfig, tokenizer: Tokenizer, tensors: Mapping[str, Tensor], dtype: torch.dtype | None
) -> Path:
    """Write weights and checksums of a converted folder, which already contains the tokenizer. Returns the path."""
    path = RunFolder(folder).checkpoints / WEIGHTS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = json.dumps({"model": to_tree(model), "tokenizer_sha256": tokenizer.sha256})
    write_file(path, tensors, list(tensors), {"format": "pt", _METADATA: metadata}, dtype)
    names = [path, *folder_files(RunFolder(folder).tokenizer)]
    write_folder_checksums(folder, [str(name.relative_to(folder)) for name in names])
    return path


def folder_files(folder: Path) -> list[Path]:
    """Return all files of a folder, recursively, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def load_pretrain(overrides: Sequence[str]) -> tuple[PretrainConfig, Checkpoint | None]:
    """Load the config of a new pretraining run and open the checkpoint of an `init_from` override; None without one."""
    overrides, opened = with_model_of_start(overrides)
    config: PretrainConfig = load("pretrain", overrides)
    return config, opened


def with_model_of_start(overrides: Sequence[str]) -> tuple[list[str], Checkpoint | None]:
    """Overrides of a pretraining run with the model of its `init_from` before them, and that checkpoint, opened.

    Without `init_from` the overrides are unchanged. The checkpoint determines the model, so `model=` cannot be given;
    `model.is_causal=false` still can, also by a file such as experiment=adapt.
    """
    path = next((value for key, _, value in (o.partition("=") for o in overrides[::-1]) if key == "init_from"), "null")
    if path.strip("'\"") in ("", "null"):
        return list(overrides), None
    if chosen := next((override for override in overrides if override.startswith("model=")), None):
        raise UserError(f"{chosen} and init_from={path}: the checkpoint determines the model: leave out {chosen}")
    opened = open_checkpoint(Path(path.strip("'\"")))
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


def checkpoint_file(path: Path) -> Path:
    """Return the newest checkpoint of a run folder, the one of a converted folder, or `path` itself.

    Raises UserError for a folder without a checkpoint.
    """
    if path.is_symlink() and path.exists():
        target = path.resolve()  # of best.ckpt, or of a link outside every run
        if target.parent == path.parent.resolve() or not RunFolder.of_checkpoint(path).tokenizer.is_dir():
            path = target
    if not path.is_dir() or is_checkpoint(path):
        return path
    folder = RunFolder(path)
    newest = latest_checkpoint(folder.checkpoints)
    if newest is None and (folder.checkpoints / WEIGHTS_FILE).is_file():
        return folder.checkpoints / WEIGHTS_FILE
    if newest is None and (path / CONFIG_FILE).is_file():
        raise UserError(f"{path} is a Hugging Face checkpoint: run lit-illada convert {path} FOLDER first")
    if newest is None:
        check_folder(path)  # a converted folder whose weights are missing
        RunFolder.open(path)
        raise UserError(f"{path}: it has no checkpoint yet")
    return newest


def run_of(checkpoint: Path) -> RunFolder:
    """Return the run or converted folder that `checkpoint` is, or that contains it."""
    is_folder = checkpoint.is_dir() and not is_checkpoint(checkpoint)
    return RunFolder(checkpoint) if is_folder else RunFolder.of_checkpoint(checkpoint)


# (model, sha256 of the tokenizer, tensors, their shapes, the tokenizer if the file contains it)
_Contents = tuple[ModelConfig, str, Mapping[str, Tensor], dict[str, tuple[int, ...]], Tokenizer | None]


def _parse_state(content: Mapping[str, Any], path: Path) -> _Contents:
    try:
        hparams, weights = content["hyper_parameters"], Weights(content)
        config, sha256 = hparams["config"], hparams["tokenizer_sha256"]
        model = from_tree(ModelConfig, config["model"], "model.")
        adapter = config.get("adapter", {"name": "none"})
        scale = adapter["alpha"] / adapter["rank"] if adapter["name"] == "lora" else None
    except KeyError as error:
        raise UserError(f"{path}: not a checkpoint of lit-illada (no {error})") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: not a checkpoint of lit-illada ({error})") from error
    names = {key.removeprefix("model."): key for key in weights if key.startswith("model.")}
    tensors: Mapping[str, Tensor] = CheckedTensors(Renamed(weights, names), str(path))
    if scale is not None:
        tensors = MergedTensors(tensors, scale)
    # present in checkpoints of a user's own Trainer; runs have theirs in the run folder
    files = content.get("tokenizer")
    saved = None if files is None else Tokenizer.from_files(files[TOKENIZER_FILE], files[TOKENIZER_CONFIG], str(path))
    return model, sha256, tensors, {name: weights.shapes[key] for name, key in names.items()}, saved


def _read_weights(path: Path, folder: RunFolder) -> _Contents:
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    listed = check_folder(folder.path)
    if listed is not None and f"{folder.checkpoints.name}/{path.name}" not in listed:
        raise DamagedFileError(f"{folder.path / CHECKSUMS_FILE}: does not list {path.name}")
    files = TensorFiles([path])
    if _METADATA not in files.metadata:
        raise UserError(
            f"{path}: not a checkpoint of lit-illada; convert its folder first: lit-illada convert {path.parent} FOLDER"
        )
    metadata = parse_json(files.metadata[_METADATA], str(path))
    try:
        model, sha256 = from_tree(ModelConfig, metadata.get("model"), "model."), metadata.get("tokenizer_sha256")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return model, str(sha256), CheckedTensors(files, str(path)), files.shapes, None

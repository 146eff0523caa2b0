"""What is a checkpoint of ours, and what does a run that begins with it take over?

A run's `.ckpt`, a file or a folder, holds all that resuming needs, the `.safetensors` of a converted folder the weights
alone. Both lie in `checkpoints/`, beside the `tokenizer/` they were trained with.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from lit_illada.config import SFTConfig, load
from lit_illada.data.tokenizer import CONFIG_FILE as TOKENIZER_CONFIG
from lit_illada.data.tokenizer import TOKENIZER_FILE, Tokenizer
from lit_illada.errors import UserError
from lit_illada.model.config import ModelConfig
from lit_illada.model.hf import CONFIG_FILE, Renamed, UnaccountedError, tensor_shapes, unaccounted
from lit_illada.model.lora import MergedTensors
from lit_illada.model.tensor_files import TensorFiles, write_file
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.files import ContentError, parse_json
from lit_illada.training.checkpoint import Weights, is_checkpoint, latest_checkpoint, read_checkpoint
from lit_illada.tree import from_tree, to_tree

WEIGHTS_FILE = "weights.safetensors"
_METADATA = "lit_illada"
# what a run may choose anew; all else of the model is what its weights mean
_FREE = {"is_causal", "predicts_next", "attention", "max_position_embeddings", "initializer_range"}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """tensors: under the model's names, each mapped from the file when asked for."""

    path: Path
    model: ModelConfig
    tokenizer: Tokenizer
    tensors: Mapping[str, Tensor]


def open_checkpoint(path: Path) -> Checkpoint:
    """Of a run folder (its newest checkpoint), a converted folder, or one checkpoint. Reads no weights yet."""
    file = checkpoint_file(path)
    folder = RunFolder.of_checkpoint(file)
    model, sha256, tensors, shapes, saved = _read_weights(file) if file.suffix == ".safetensors" else _read_ckpt(file)
    if problems := unaccounted({name: shapes[name] for name in tensors}, tensor_shapes(model), {}):
        raise UnaccountedError(str(file), problems)
    tokenizer = Tokenizer.load(folder.tokenizer) if saved is None else saved
    if tokenizer.sha256 != sha256:
        raise UserError(
            f"{folder.tokenizer if saved is None else file}: not the tokenizer that {file.name} was trained with"
        )
    return Checkpoint(file, model, tokenizer, tensors)


def write_weights(
    folder: Path, model: ModelConfig, tokenizer: Tokenizer, tensors: Mapping[str, Tensor], dtype: torch.dtype | None
) -> Path:
    """A converted folder's checkpoint; the tokenizer is in `folder` already."""
    path = RunFolder(folder).checkpoints / WEIGHTS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    described = json.dumps({"model": to_tree(model), "tokenizer_sha256": tokenizer.sha256})
    write_file(path, tensors, list(tensors), {"format": "pt", _METADATA: described}, dtype)
    return path


def load_sft(base: Path, overrides: Sequence[str]) -> tuple[SFTConfig, Tokenizer]:
    """The config of a fine-tuning of this checkpoint, with the model that it brings, and its tokenizer."""
    opened = open_checkpoint(base)
    config = load("sft", overrides, {"init_from": str(base), "model": to_tree(opened.model)})
    return config, opened.tokenizer


def with_model_of_init(overrides: Sequence[str]) -> list[str]:
    """The overrides, with the model of the checkpoint that `init_from=` names before them.

    So a run that starts from weights needs no `model=`, and may still say `model.is_causal=false`.
    """
    path = next((value for key, _, value in (o.partition("=") for o in overrides[::-1]) if key == "init_from"), None)
    if path is None or path.strip("'\"") in ("", "null"):
        return list(overrides)
    if chosen := next((override for override in overrides if override.startswith("model=")), None):
        raise UserError(f"{chosen} and init_from={path}: the checkpoint brings its own model, leave out {chosen}")
    model = to_tree(open_checkpoint(Path(path.strip("'\""))).model)
    # as Hydra's grammar writes them: JSON's null, true and numbers are its own
    return [
        f"model.{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in model.items()
    ] + [*overrides]


def check_fits(checkpoint: Checkpoint, model: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raises UserError unless the weights mean the same in a run with this model and tokenizer."""
    named = [item.name for item in fields(ModelConfig) if item.name not in _FREE]
    different = [name for name in named if getattr(checkpoint.model, name) != getattr(model, name)]
    if different:
        listed = ", ".join(f"{n}: {getattr(checkpoint.model, n)} there, {getattr(model, n)} asked" for n in different)
        raise UserError(f"{checkpoint.path} holds another model ({listed}): leave out model= and those overrides")
    if checkpoint.tokenizer.sha256 != tokenizer.sha256:
        folder = RunFolder.of_checkpoint(checkpoint.path).tokenizer
        raise UserError(
            f"the data set was made with another tokenizer than {checkpoint.path}: prepare one with "
            f"data/tokenizer=load data.tokenizer.path={folder}"
        )


def checkpoint_file(path: Path) -> Path:
    """The newest of a run folder, that of a converted folder, or the checkpoint itself."""
    path = path.resolve() if path.is_symlink() else path  # the best one's
    if not path.is_dir() or is_checkpoint(path):
        return path
    folder = RunFolder(path)
    newest = latest_checkpoint(folder.checkpoints)
    if newest is None and (folder.checkpoints / WEIGHTS_FILE).is_file():
        return folder.checkpoints / WEIGHTS_FILE
    if newest is None and (path / CONFIG_FILE).is_file():
        raise UserError(f"{path} is a Hugging Face checkpoint: first lit-illada convert {path} FOLDER")
    if newest is None:
        RunFolder.open(path)
        raise UserError(f"{path}: no checkpoint there yet")
    return newest


def run_of(checkpoint: Path) -> RunFolder:
    """The run or converted folder that is named, or whose checkpoint is."""
    is_folder = checkpoint.is_dir() and not is_checkpoint(checkpoint)
    return RunFolder(checkpoint) if is_folder else RunFolder.of_checkpoint(checkpoint)


_Read = tuple[ModelConfig, str, Mapping[str, Tensor], dict[str, tuple[int, ...]], Tokenizer | None]


def _read_ckpt(path: Path) -> _Read:
    content = read_checkpoint(path)
    try:
        hparams, weights = content["hyper_parameters"], Weights(content)
        config, sha256 = hparams["config"], hparams["tokenizer_sha256"]
        model = from_tree(ModelConfig, config["model"], "model.")
    except KeyError as error:
        raise UserError(f"{path}: not a checkpoint of lit-illada (no {error})") from error
    names = {key.removeprefix("model."): key for key in weights if key.startswith("model.")}
    tensors: Mapping[str, Tensor] = Renamed(weights, names)
    adapter = config.get("adapter", {"name": "none"})
    if adapter["name"] == "lora":
        tensors = MergedTensors(tensors, adapter["alpha"] / adapter["rank"])
    # of a Trainer of the user's own; a run's own lies in its folder
    files = content.get("tokenizer")
    saved = None if files is None else Tokenizer.from_files(files[TOKENIZER_FILE], files[TOKENIZER_CONFIG], str(path))
    return model, sha256, tensors, {name: weights.shapes[key] for name, key in names.items()}, saved


def _read_weights(path: Path) -> _Read:
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    files = TensorFiles([path])
    try:
        described = parse_json(files.metadata[_METADATA], str(path))
        return from_tree(ModelConfig, described["model"]), described["tokenizer_sha256"], files, files.shapes, None
    except (KeyError, TypeError, ContentError) as error:
        raise UserError(
            f"{path}: not a checkpoint of lit-illada; convert its folder first: lit-illada convert {path.parent} FOLDER"
        ) from error

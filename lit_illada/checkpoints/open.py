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

from lit_illada.checkpoints.hf import (
    CONFIG_FILE,
    Renamed,
    UnaccountedError,
    expected_shapes,
    load_model,
    unaccounted,
)
from lit_illada.checkpoints.safetensors_io import TensorFiles, write_file
from lit_illada.config import SFTConfig, load
from lit_illada.data.tokenizer import CONFIG_FILE as TOKENIZER_CONFIG
from lit_illada.data.tokenizer import TOKENIZER_FILE, Tokenizer
from lit_illada.errors import UserError
from lit_illada.generation.text import LanguageModel
from lit_illada.model.config import ModelConfig
from lit_illada.model.lora import MergedTensors
from lit_illada.model.weight_check import CheckedTensors
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.checksums import CHECKSUMS_FILE, DamagedFileError, check_files, write_folder_checksums
from lit_illada.runtime.files import parse_json
from lit_illada.schema import from_tree, to_tree
from lit_illada.training.checkpointing.files import is_checkpoint, latest_checkpoint
from lit_illada.training.checkpointing.reading import Weights, read_checkpoint

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


def open_checkpoint(path: Path, process: int = 0, num_processes: int = 1) -> Checkpoint:
    """The checkpoint of a run folder (its newest) or a converted folder, or the one at this path.

    Compares the files with their checksums, where they have any; of several processes each takes its part of a sharded
    checkpoint's files. Its tensors are read, and checked, when asked for.
    Raises UserError for a checkpoint that is missing, damaged or of another model than its config says.
    """
    file = checkpoint_file(path)
    folder = RunFolder.of_checkpoint(file)
    is_converted = file.suffix == ".safetensors"
    read = _read_weights(file) if is_converted else _read_ckpt(file, process, num_processes)
    model, sha256, tensors, shapes, saved = read
    wanted = expected_shapes(model, str(file), len(shapes))
    if problems := unaccounted({name: shapes[name] for name in tensors}, wanted, {}):
        raise UnaccountedError(str(file), problems)
    tokenizer = Tokenizer.load(folder.tokenizer) if saved is None else saved
    if tokenizer.sha256 != sha256:
        raise UserError(
            f"{folder.tokenizer if saved is None else file}: not the tokenizer that {file.name} was trained with"
        )
    return Checkpoint(file, model, tokenizer, tensors)


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> LanguageModel:
    """Load the model, in evaluation mode on `device`, and its tokenizer.

    path: a run folder (its newest checkpoint), a converted folder or one checkpoint. Raises UserError for a path
    without a checkpoint, and for a damaged one.
    """
    checkpoint = open_checkpoint(Path(path))
    model = load_model(checkpoint.model, checkpoint.tensors, torch.device(device)).eval()
    return LanguageModel(model, checkpoint.tokenizer)


def write_weights(
    folder: Path, model: ModelConfig, tokenizer: Tokenizer, tensors: Mapping[str, Tensor], dtype: torch.dtype | None
) -> Path:
    """A converted folder's checkpoint; the tokenizer is in `folder` already."""
    path = RunFolder(folder).checkpoints / WEIGHTS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    described = json.dumps({"model": to_tree(model), "tokenizer_sha256": tokenizer.sha256})
    write_file(path, tensors, list(tensors), {"format": "pt", _METADATA: described}, dtype)
    names = [path, *folder_files(RunFolder(folder).tokenizer)]
    write_folder_checksums(folder, [str(name.relative_to(folder)) for name in names])
    return path


def folder_files(folder: Path) -> list[Path]:
    """The files of a folder and of its subfolders, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


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


# (model, the tokenizer's sha256, tensors, their shapes, the tokenizer where the file holds it)
_Read = tuple[ModelConfig, str, Mapping[str, Tensor], dict[str, tuple[int, ...]], Tokenizer | None]


def _read_ckpt(path: Path, process: int, num_processes: int) -> _Read:
    content = read_checkpoint(path, process, num_processes)
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
    # of a Trainer of the user's own; a run's own lies in its folder
    files = content.get("tokenizer")
    saved = None if files is None else Tokenizer.from_files(files[TOKENIZER_FILE], files[TOKENIZER_CONFIG], str(path))
    return model, sha256, tensors, {name: weights.shapes[key] for name, key in names.items()}, saved


def _read_weights(path: Path) -> _Read:
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    checksums = RunFolder.of_checkpoint(path).path / CHECKSUMS_FILE
    if checksums.is_file() and str(path.resolve().relative_to(checksums.parent)) not in check_files(checksums):
        raise DamagedFileError(f"{checksums}: does not list {path.name}")
    files = TensorFiles([path])
    if _METADATA not in files.metadata:
        raise UserError(
            f"{path}: not a checkpoint of lit-illada; convert its folder first: lit-illada convert {path.parent} FOLDER"
        )
    described = parse_json(files.metadata[_METADATA], str(path))
    try:
        model, sha256 = from_tree(ModelConfig, described.get("model"), "model."), described.get("tokenizer_sha256")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return model, str(sha256), CheckedTensors(files, str(path)), files.shapes, None

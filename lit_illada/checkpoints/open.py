"""Opens lit-illada checkpoints and writes converted ones.

A `.ckpt` file or folder of a run contains everything that resuming needs; the `.safetensors` file of a converted folder
contains the weights only. Both are in `checkpoints/`, next to the `tokenizer/` they were trained with.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
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
from lit_illada.data.tokenizer import CONFIG_FILE as TOKENIZER_CONFIG
from lit_illada.data.tokenizer import TOKENIZER_FILE, Tokenizer
from lit_illada.errors import UserError
from lit_illada.generation.text import LanguageModel
from lit_illada.model.config import ModelConfig
from lit_illada.model.lora import MergedTensors
from lit_illada.model.weight_check import CheckedTensors
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.checksums import CHECKSUMS_FILE, DamagedFileError, check_folder, write_folder_checksums
from lit_illada.runtime.files import MissingFileError, parse_json
from lit_illada.schema import from_tree, to_tree
from lit_illada.training.checkpointing.files import is_checkpoint, latest_checkpoint
from lit_illada.training.checkpointing.reading import Weights, read_checkpoint

WEIGHTS_FILE = "weights.safetensors"
_METADATA = "lit_illada"


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


def checkpoint_file(path: Path) -> Path:
    """Return the newest checkpoint of a run folder, the one of a converted folder, or `path` itself.

    Raises UserError for a folder without a checkpoint.
    """
    if path.is_symlink() and path.exists():
        target = path.resolve()  # of `best`, or of a link outside every run
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
        raise MissingFileError(f"{path}: no such checkpoint")
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

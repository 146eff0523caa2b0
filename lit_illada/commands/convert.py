"""Runs the `convert` command: Hugging Face checkpoints and GGUF files to lit-illada folders, and back."""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import Tensor

from lit_illada.checkpoints import pypi
from lit_illada.checkpoints.gguf_file import is_gguf, open_gguf
from lit_illada.checkpoints.hf import CONFIG_FILE, UnaccountedError, open_hf, write_hf, zero_biases
from lit_illada.checkpoints.hf_layouts import HfLayout, layout_for
from lit_illada.checkpoints.hf_tokenizer import bos_and_pad_ids, tokenizer_files, use_plain_tokenizer, with_named_tokens
from lit_illada.checkpoints.open import folder_files, open_checkpoint, write_weights
from lit_illada.data.tokenizer import CONFIG_FILE as TOKENIZER_CONFIG_FILE
from lit_illada.data.tokenizer import TOKENIZER_FILE, Tokenizer
from lit_illada.errors import UserError
from lit_illada.model.config import ModelConfig, num_parameters
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.checksums import check_folder, write_folder_checksums
from lit_illada.runtime.console import Console
from lit_illada.runtime.new_folder import new_folder, require_new

# copied beside tokenizer.json because other tools read them; code is never copied
_TOKENIZER_FILES = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
                    "vocab.json", "merges.txt", "generation_config.json")  # fmt: skip
_DOWNLOADED = ["*.json", "model*.safetensors", "*.jinja", "merges.txt"]


@dataclass(frozen=True, eq=False)
class Source:
    """The checkpoint to convert."""

    kind: str
    """`lit`, or the model_type of its config.json, and whether it is GGUF."""
    model: ModelConfig
    tokenizer: Tokenizer
    tensors: Mapping[str, Tensor]
    """Weights under our parameter names, read on access."""
    names: Mapping[str, str]
    """Our parameter name -> name in the source."""
    unused: Mapping[str, str]
    """Tensors that are not converted, with the reason."""
    write_tokenizer: Callable[[Path], None]
    """Writes the tokenizer files into a folder."""


def run_convert(
    source: str,
    destination: Path,
    to: str | None,
    mask_token: str | None,
    eos_token: str | None,
    dtype: str | None,
    max_shard_gb: float,
    revision: str | None,
) -> None:
    """Convert a checkpoint and print a summary of all tensors.

    Args:
        source: local folder or file, hub id, or pypi:PACKAGE for the GGUF file of an installed package.
        destination: new folder.
        to: layout to write; None: ours from a Hugging Face checkpoint, else the first Hugging Face layout that fits.
        mask_token, eos_token: special tokens that the source does not name.
        dtype: name of the torch dtype to write; None: that of the weights.
        max_shard_gb: largest safetensors file, in GB.
        revision: branch, tag or commit of a hub repository.
    """
    console = Console(stderr=True)
    require_new(destination)
    if destination.resolve() == Path.cwd():  # renaming replaces an empty destination
        raise UserError(f"{destination} is the current folder, which cannot be replaced: name a new one")
    if (package := pypi.package_of(source)) is not None:
        path, mask_token = pypi.packaged_gguf(package), mask_token or pypi.MASK_TOKENS.get(package)
    else:
        path = _local(source, revision)
    check_folder(path)  # before the layout is recognised by its files, which may be missing
    try:
        converted = _read(path, mask_token, eos_token)
    except UnaccountedError as error:
        for problem in error.problems:
            console.print(f"  {problem}", highlight=False, soft_wrap=True)
        raise
    if converted.kind == "lit" and (mask_token or eos_token):
        raise UserError(
            f"{path} is a lit-illada checkpoint with its own tokens: leave out --mask-token and --eos-token"
        )
    if to is None:
        to = "lit" if converted.kind != "lit" else None
    layout = None if to == "lit" else layout_for(converted.model, to)
    wanted = getattr(torch, dtype) if dtype is not None else None
    with new_folder(destination) as folder:
        if layout is None:
            converted.write_tokenizer(RunFolder(folder).tokenizer)
            write_weights(folder, converted.model, converted.tokenizer, converted.tensors, wanted)
            RunFolder(folder).write_provenance(datetime.now())
        else:
            _write_published(folder, converted, layout, wanted, max_shard_gb)
    _report(converted, layout, destination, wanted, console)


def _local(source: str, revision: str | None) -> Path:
    """Return the local path, downloading a hub repository: its safetensors and JSON files, no code."""
    path = Path(source)
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(f"{source}: no such folder or file, and no hub id (owner/name)")
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=_DOWNLOADED))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise UserError(
            f"{source}: no such local folder, and no such repository on the hub, or no access to it "
            "(log in with: hf auth login)"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{source}: the hub's repository has no revision {revision!r}") from error
    except HFValidationError as error:
        raise UserError(f"{source}: no such local folder, and no hub id") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{source}: no such local folder, and the hub could not be reached ({_first_line(error)}): download it "
            "on a machine with network access, and give the folder"
        ) from error


def _read(path: Path, mask_token: str | None, eos_token: str | None) -> Source:
    if is_gguf(path):
        return _from_gguf(path, mask_token, eos_token)
    return _from_hf(path, mask_token, eos_token) if (path / CONFIG_FILE).is_file() else _from_ours(path)


def _from_gguf(path: Path, mask_token: str | None, eos_token: str | None) -> Source:
    found = open_gguf(path)
    files = with_named_tokens(found, found.tokenizer_json, found.tokenizer_config, mask_token, eos_token)
    tokenizer = _tokenizer(files, found.config, path)
    kind = f"{found.layout.model_type} (GGUF)"
    return Source(kind, found.config, tokenizer, found.tensors, found.names, {}, lambda target: _write(files, target))


def _from_hf(folder: Path, mask_token: str | None, eos_token: str | None) -> Source:
    checkpoint = open_hf(folder)
    files = tokenizer_files(checkpoint, mask_token, eos_token)
    tokenizer = _tokenizer(files, checkpoint.config, folder)

    def write(target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for name in _TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
        _write(files, target)

    return Source(
        checkpoint.layout.model_type,
        checkpoint.config,
        tokenizer,
        checkpoint.tensors,
        checkpoint.names,
        checkpoint.unused,
        write,
    )


def _tokenizer(files: Mapping[str, str], model: ModelConfig, origin: Path) -> Tokenizer:
    """Raises UserError for a tokenizer with more tokens than the embedding has rows."""
    tokenizer = Tokenizer.from_files(files[TOKENIZER_FILE], files[TOKENIZER_CONFIG_FILE], str(origin))
    rows = model.known_vocab_size
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"{origin}: the tokenizer has {tokenizer.vocab_size} tokens, but the embedding only {rows} rows"
        )
    return tokenizer


def _write(files: Mapping[str, str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")


def _from_ours(path: Path) -> Source:
    checkpoint = open_checkpoint(path)
    folder = RunFolder.of_checkpoint(checkpoint.path).tokenizer

    def write(target: Path) -> None:
        if checkpoint.path.suffix != ".safetensors":  # in a run folder the tokenizer's files have no checksums
            checkpoint.tokenizer.save(target)
            return
        for file in folder_files(folder):  # not copytree, whose error has no errno for a full disk
            (target / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / file.relative_to(folder))

    names = {name: name for name in checkpoint.tensors}
    return Source("lit", checkpoint.model, checkpoint.tokenizer, checkpoint.tensors, names, {}, write)


def _write_published(
    folder: Path, converted: Source, layout: HfLayout, dtype: torch.dtype | None, max_shard_gb: float
) -> None:
    """Write tokenizer, config, weights and checksums in a published layout."""
    converted.write_tokenizer(folder)
    if layout.model_type == "qwen2":
        use_plain_tokenizer(folder)
    write_hf(
        folder,
        layout,
        converted.model,
        converted.tensors,
        mask_token_id=converted.tokenizer.mask_token_id,
        eos_token_id=converted.tokenizer.eos_token_id,
        **bos_and_pad_ids(folder),
        dtype=dtype,
        max_shard_bytes=int(max_shard_gb * 1e9),
    )
    write_folder_checksums(folder, [str(path.relative_to(folder)) for path in folder_files(folder)])


def _report(
    converted: Source, layout: HfLayout | None, destination: Path, dtype: torch.dtype | None, console: Console
) -> None:
    """Print one line per kind of tensor: count, shape, dtype, old and new name."""
    target = "lit" if layout is None else layout.model_type
    lines: Counter[tuple[str, str, str]] = Counter()
    for ours, theirs in converted.names.items():
        tensor = converted.tensors[ours]
        exported = ours if layout is None else layout.published_name(ours)
        before, after = _pattern(theirs), _pattern(exported)
        names = before if before == after else f"{before} → {after}"
        lines[(_shape_text(tensor.shape), _dtype_text(tensor.dtype, dtype), names)] += 1
    for name, reason in converted.unused.items():
        lines[("", "", f"{_pattern(name)} skipped: {reason}")] += 1
    for name, shape in (zero_biases(layout, converted.model) if layout is not None else {}).items():
        lines[(_shape_text(shape), "", f"zeros → {_pattern(name)}")] += 1
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    report = [f"{converted.kind} → {target}: {num_parameters(converted.model) / 1e6:,.1f} M parameters"]
    for (shape_text, dtype_text, names), count in lines.items():
        report.append(f"{count:5d}  {shape_text:{widths[0]}}  {dtype_text:{widths[1]}}  {names}")
    report.append(f"all tensors are mapped; written to {destination}")
    if layout is None:
        tokenizer = RunFolder(destination).tokenizer
        if not converted.model.is_causal:
            report.append(f"generate  lit-illada generate {destination} --prompt TEXT")
        report.append(
            f"prepare   lit-illada data prepare data/tokenizer=load data.tokenizer.path={tokenizer} data.dir=DIR"
        )
        report.append(f"pretrain  lit-illada pretrain --init-from {destination} data=prepared data.dir=DIR")
    for line in report:
        console.print(line, highlight=False, soft_wrap=True)


def _pattern(name: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", name)


def _shape_text(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _dtype_text(before: torch.dtype, after: torch.dtype | None) -> str:
    texts = [str(each).removeprefix("torch.") for each in (before, after or before)]
    return texts[0] if texts[0] == texts[1] else " → ".join(texts)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

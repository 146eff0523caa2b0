"""The `convert` command: a published checkpoint into a folder our commands open, and ours into a published layout."""

import errno
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from rich.console import Console
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from torch import Tensor

from lit_illada.checkpoints.hf import CONFIG_FILE, HfCheckpoint, UnaccountedError, open_hf, write_hf, zero_biases
from lit_illada.checkpoints.hf_layouts import HfLayout, layout_for
from lit_illada.checkpoints.open import folder_files, open_checkpoint, write_weights
from lit_illada.data.tokenizer import CONFIG_FILE as TOKENIZER_CONFIG_FILE
from lit_illada.data.tokenizer import TOKENIZER_FILE, Tokenizer
from lit_illada.errors import UserError
from lit_illada.model.config import ModelConfig, num_parameters
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.checksums import write_folder_checksums
from lit_illada.runtime.files import read_json, read_text, write_atomically, write_json

# beside tokenizer.json, what other tools read of a tokenizer; never code
_TOKENIZER_FILES = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
                    "vocab.json", "merges.txt", "generation_config.json")  # fmt: skip
_PLAIN_MODULE, _PLAIN_CLASS = "tokenization_plain", "PlainTokenizer"
_PLAIN_CODE = f"""from transformers import PreTrainedTokenizerFast


class {_PLAIN_CLASS}(PreTrainedTokenizerFast):
    pass
"""
_DOWNLOADED = ["*.json", "model*.safetensors", "*.jinja", "merges.txt"]


@dataclass(frozen=True, eq=False)
class Source:
    """What is converted. tensors: under our names. names: ours -> as the source calls them. write_tokenizer: writes the
    tokenizer's files into a folder."""

    kind: str
    model: ModelConfig
    tokenizer: Tokenizer
    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]
    unused: Mapping[str, str]
    write_tokenizer: Callable[[Path], None]


def run(
    source: str,
    destination: Path,
    to: str | None,
    mask_token: str | None,
    eos_token: str | None,
    dtype: str | None,
    max_shard_gb: float,
    revision: str | None,
) -> None:
    """Convert, and print what became of every tensor."""
    console = Console(stderr=True)
    _require_new(destination)
    if destination.resolve() == Path.cwd():  # the new folder takes the place of an empty one
        raise UserError(f"{destination} is the folder you are in, and cannot be replaced: name a new one")
    path = _local(source, revision)
    try:
        found = _from_hf(path, mask_token, eos_token) if (path / CONFIG_FILE).is_file() else _from_ours(path)
    except UnaccountedError as error:
        for problem in error.problems:
            console.print(f"  {problem}", highlight=False, markup=False, soft_wrap=True)
        raise
    if found.kind == "lit" and (mask_token or eos_token):
        raise UserError(f"{path} is ours, its tokenizer names its tokens: leave out --mask-token and --eos-token")
    if to is None:
        to = "lit" if found.kind != "lit" else None
    layout = None if to == "lit" else layout_for(found.model, to)
    wanted = getattr(torch, dtype) if dtype is not None else None
    with _made_whole(destination) as folder:
        if layout is None:
            found.write_tokenizer(RunFolder(folder).tokenizer)
            write_weights(folder, found.model, found.tokenizer, found.tensors, wanted)
            RunFolder(folder).write_provenance(datetime.now())
        else:
            found.write_tokenizer(folder)
            if layout.model_type == "qwen2":
                _keep_tokenizer_class(folder)
            write_hf(
                folder,
                layout,
                found.model,
                found.tensors,
                mask_token_id=found.tokenizer.mask_token_id,
                eos_token_id=found.tokenizer.eos_token_id,
                **_bos_and_pad(folder),
                dtype=wanted,
                max_shard_bytes=int(max_shard_gb * 1e9),
            )
            write_folder_checksums(folder, [str(path.relative_to(folder)) for path in folder_files(folder)])
    _report(found, layout, destination, wanted, console)


def _local(source: str, revision: str | None) -> Path:
    """The folder or file itself, or the hub's repository in the local cache: its safetensors and JSON, no code."""
    path = Path(source)
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(f"{source}: no such folder or file, nor a hub id (owner/name)")
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=_DOWNLOADED))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise UserError(
            f"{source}: no such folder here, and no such repository on the hub, or not one open to you "
            "(log in with: hf auth login)"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{source}: the hub's repository has no revision {revision!r}") from error
    except HFValidationError as error:
        raise UserError(f"{source}: no such folder here, and no hub id") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{source}: no such folder here, and the hub could not be reached ({_first_line(error)}): download it "
            "where there is a network, and name the folder"
        ) from error


def _from_hf(folder: Path, mask_token: str | None, eos_token: str | None) -> Source:
    checkpoint = open_hf(folder)
    files = _tokenizer_files(checkpoint, mask_token, eos_token)
    tokenizer = Tokenizer.from_files(files[TOKENIZER_FILE], files[TOKENIZER_CONFIG_FILE], str(folder))
    rows = checkpoint.config.known_vocab_size
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens and the checkpoint's embedding only {rows} rows"
        )

    def write(target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for name in _TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
        for name, content in files.items():
            (target / name).write_text(content, encoding="utf-8")

    return Source(
        checkpoint.layout.model_type,
        checkpoint.config,
        tokenizer,
        checkpoint.tensors,
        checkpoint.names,
        checkpoint.unused,
        write,
    )


def _from_ours(path: Path) -> Source:
    checkpoint = open_checkpoint(path)
    folder = RunFolder.of_checkpoint(checkpoint.path).tokenizer

    def write(target: Path) -> None:
        for file in folder_files(folder):  # not copytree, whose error hides that the disk is full
            (target / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / file.relative_to(folder))

    names = {name: name for name in checkpoint.tensors}
    return Source("lit", checkpoint.model, checkpoint.tokenizer, checkpoint.tensors, names, {}, write)


def _tokenizer_files(checkpoint: HfCheckpoint, mask_token: str | None, eos_token: str | None) -> dict[str, str]:
    """The checkpoint's tokenizer, with its mask and end tokens named. Only a mask token that is given and absent
    changes tokenizer.json, which else stays as it is byte for byte."""
    folder = checkpoint.folder
    path, config_path = folder / TOKENIZER_FILE, folder / TOKENIZER_CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{folder}: no {TOKENIZER_FILE}, the only format of tokenizers that is read")
    config = read_json(config_path) if config_path.is_file() else {}
    text = read_text(path)
    try:
        backend = Backend.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path}: not readable by the tokenizers library ({error})") from error
    mask = _named(checkpoint, backend, config, "mask_token", mask_token)
    if mask is None and (known := checkpoint.layout.mask_token) and backend.token_to_id(known) is not None:
        mask = known
    if mask is None:
        raise UserError(
            f"{folder}: nothing says which token is [MASK]: give --mask-token, '<|mask|>' to add one in a spare row of "
            "the embedding"
        )
    if backend.token_to_id(mask) is None:
        text = _with_token(backend, mask, checkpoint.config.known_vocab_size, folder)
    eos = _named(checkpoint, backend, config, "eos_token", eos_token)
    if eos is None:
        raise UserError(f"{folder}: nothing says which token ends a text: give --eos-token")
    config |= {"mask_token": mask, "eos_token": eos}
    for kind in ("bos_token", "pad_token"):  # config.json may be the only one that names them
        if config.get(kind) is None and (token := _named(checkpoint, backend, config, kind, None)) is not None:
            config[kind] = token
    if (config.get("auto_map") or {}) == {"AutoTokenizer": [None, f"{_PLAIN_MODULE}.{_PLAIN_CLASS}"]}:
        del config["auto_map"]  # of an export of ours, whose code is not copied
    return {TOKENIZER_FILE: text, TOKENIZER_CONFIG_FILE: json.dumps(config, indent=2, ensure_ascii=False) + "\n"}


def _named(
    checkpoint: HfCheckpoint, backend: Backend, tokenizer_config: dict[str, object], kind: str, given: str | None
) -> str | None:
    """The token as the user, the tokenizer or the model's config names it; they must agree about mask tokens."""
    entry = tokenizer_config.get(kind)
    text = given or (entry.get("content") if isinstance(entry, dict) else entry)
    index = checkpoint.content.get(f"{kind}_id")
    index = index[0] if isinstance(index, list) and index else index
    by_model = backend.id_to_token(index) if isinstance(index, int) else None
    if kind == "mask_token" and isinstance(index, int) and by_model is None:
        raise UserError(
            f"{checkpoint.folder}: {CONFIG_FILE} says that the mask token is {index}, which the tokenizer has not"
        )
    if kind == "mask_token" and text is not None and by_model not in (None, text):
        raise UserError(
            f"{checkpoint.folder}: the mask token is {text!r} by the {'command' if given else 'tokenizer'} and "
            f"{by_model!r} ({index}) by {CONFIG_FILE}"
        )
    return str(text) if text is not None else by_model


def _with_token(backend: Backend, token: str, rows: int, folder: Path) -> str:
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    index = backend.token_to_id(token)
    if index is None or index >= rows:
        raise UserError(
            f"{folder}: no spare row in the embedding of {rows} for {token!r}: name a reserved token of its tokenizer"
        )
    return backend.to_str()


def _bos_and_pad(folder: Path) -> dict[str, int | None]:
    """The ids of the tokens that an exported tokenizer names for a text's beginning and for padding."""
    config = read_json(folder / TOKENIZER_CONFIG_FILE)
    backend = Backend.from_file(str(folder / TOKENIZER_FILE))
    ids = {}
    for kind in ("bos_token", "pad_token"):
        entry = config.get(kind)
        text = entry.get("content") if isinstance(entry, dict) else entry
        ids[f"{kind}_id"] = backend.token_to_id(text) if isinstance(text, str) else None
    return ids


def _keep_tokenizer_class(folder: Path) -> None:
    """Let transformers read tokenizer.json as it is.

    For models of type qwen2, transformers 5 ignores a general `tokenizer_class` and splits text as Qwen2's tokenizer
    does, which gives other ids. It respects `auto_map`, which needs a class, used where remote code is trusted.
    """
    path = folder / TOKENIZER_CONFIG_FILE
    config = read_json(path)
    if config.get("tokenizer_class") not in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return
    write_json(path, {**config, "auto_map": {"AutoTokenizer": [None, f"{_PLAIN_MODULE}.{_PLAIN_CLASS}"]}})
    write_atomically(folder / f"{_PLAIN_MODULE}.py", _PLAIN_CODE)


def _require_new(destination: Path) -> None:
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination} already exists: name a new folder")


@contextmanager
def _made_whole(destination: Path) -> Iterator[Path]:
    """A folder beside the destination that takes its place once everything is written.

    Raises UserError where another process is writing it, and for a full disk.
    """
    partial = destination.with_name(f".{destination.name}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with _alone_at(destination):
            _require_new(destination)  # another process may have made it since the first look
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                yield partial
                if destination.is_dir():
                    destination.rmdir()
                partial.replace(destination)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except UserError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"{destination}: cannot be written ({os.strerror(error.errno)}): free some space and run it again"
        ) from error


@contextmanager
def _alone_at(destination: Path) -> Iterator[None]:
    """Keeps other conversions to the same folder out. Raises UserError where one is at work."""
    lock = FileLock(destination.with_name(f".{destination.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"{destination} is being written by another lit-illada convert: wait for it, or name another folder"
        ) from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # before the release: nobody else holds it now
        lock.release()


def _report(
    found: Source, layout: HfLayout | None, destination: Path, dtype: torch.dtype | None, console: Console
) -> None:
    """One line for each kind of tensor: how many, of which shape and dtype, what they were called and are called."""
    target = "lit" if layout is None else layout.model_type
    lines: Counter[tuple[str, str, str]] = Counter()
    for ours, theirs in found.names.items():
        tensor = found.tensors[ours]
        now = ours if layout is None else layout.published_name(ours)
        before, after = _pattern(theirs), _pattern(now)
        names = before if before == after else f"{before} → {after}"
        lines[(_shape_text(tensor.shape), _dtype_text(tensor.dtype, dtype), names)] += 1
    for name, reason in found.unused.items():
        lines[("", "", f"{_pattern(name)} left out: {reason}")] += 1
    for name, shape in (zero_biases(layout, found.model) if layout is not None else {}).items():
        lines[(_shape_text(shape), "", f"zeros → {_pattern(name)}")] += 1
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    said = [f"{found.kind} → {target}: {num_parameters(found.model) / 1e6:,.1f} M parameters"]
    for (shape_text, dtype_text, names), count in lines.items():
        said.append(f"{count:5d}  {shape_text:{widths[0]}}  {dtype_text:{widths[1]}}  {names}")
    said.append(f"every tensor is accounted for; written to {destination}")
    if layout is None:
        tokenizer = RunFolder(destination).tokenizer
        if not found.model.is_causal:
            said.append(f"generate  lit-illada generate {destination} --prompt TEXT")
        said.append(
            f"prepare   lit-illada data prepare data/tokenizer=load data.tokenizer.path={tokenizer} data.dir=DIR"
        )
        said.append(f"pretrain  lit-illada pretrain --init-from {destination} data=prepared data.dir=DIR")
    for line in said:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _pattern(name: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", name)


def _shape_text(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _dtype_text(before: torch.dtype, after: torch.dtype | None) -> str:
    texts = [str(each).removeprefix("torch.") for each in (before, after or before)]
    return texts[0] if texts[0] == texts[1] else " → ".join(texts)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

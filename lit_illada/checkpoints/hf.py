"""Reading and writing of Hugging Face checkpoints.

Every tensor is accounted for by name and shape. No tensor is held twice in memory.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lit_illada.checkpoints.hf_layouts import HfLayout, Json, QkvBias, read_config, write_config
from lit_illada.checkpoints.safetensors_io import TensorFiles, write_tensors
from lit_illada.errors import UserError
from lit_illada.model.config import ModelConfig
from lit_illada.model.initial import fill
from lit_illada.model.transformer import Transformer
from lit_illada.model.weight_check import CheckedTensors
from lit_illada.runtime.checksums import check_folder
from lit_illada.runtime.files import read_json, write_json

CONFIG_FILE = "config.json"
LM_HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


class Renamed(Mapping[str, Tensor]):
    """Tensors under other names. names: new name -> name in `tensors`."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True, eq=False)
class HfCheckpoint:
    """A Hugging Face checkpoint whose tensors are all accounted for and not read yet."""

    folder: Path
    layout: HfLayout
    content: Json
    """Its config.json."""
    config: ModelConfig
    files: TensorFiles
    names: Mapping[str, str]
    """Our tensor name -> published name."""
    unused: Mapping[str, str]
    """Published tensors that are redundant, with the reason."""

    @property
    def origin(self) -> Path:
        """The folder."""
        return self.folder

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Tensors under our names, memory-mapped and checked on access."""
        return Renamed(CheckedTensors(self.files, str(self.folder)), self.names)


class UnaccountedError(UserError):
    """A checkpoint whose tensors differ from those of the model. problems: one line per tensor."""

    def __init__(self, origin: str, problems: list[str]) -> None:
        self.problems = problems
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        super().__init__(f"{origin}: {'; '.join(problems[:3])}{more}")


def open_hf(folder: Path) -> HfCheckpoint:
    """Opens a folder with config.json and safetensors; reads no weights except tied ones, and runs no code.

    Files are verified against `checksums.json` if the folder has one, as exports of `convert` do. Raises UserError for
    a missing, damaged or unsupported checkpoint.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{folder}: not a Hugging Face checkpoint (no {CONFIG_FILE})")
    check_folder(folder)
    content = read_json(path)
    layout, config = read_config(content, str(path))
    files = TensorFiles.open(folder)
    shapes = expected_shapes(config, str(path), len(files))
    names = {ours: layout.published_name(ours) for ours in shapes}
    unused = _unused(files, layout, config)
    problems = unaccounted(files.shapes, {names[ours]: shape for ours, shape in shapes.items()}, unused)
    if problems:
        raise UnaccountedError(str(folder), problems)
    return HfCheckpoint(folder, layout, content, config, files, names, unused)


def unaccounted(
    shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], unused: Mapping[str, str]
) -> list[str]:
    """One line per tensor that is missing, extra or of another shape, with the nearest name.

    shapes, expected: by tensor name. unused: tensors that are allowed to be extra.
    """
    extra = [name for name in shapes if name not in expected and name not in unused]
    missing = [name for name in expected if name not in shapes]
    problems = [f"{name} is missing{_nearest(name, extra)}" for name in missing]
    problems += [f"{name} does not belong to the model{_nearest(name, missing)}" for name in extra]
    for name, shape in expected.items():
        if name in shapes and shapes[name] != shape:
            problems.append(f"{name} has shape {_text(shapes[name])}, but the config implies {_text(shape)}")
    return problems


def write_hf(
    folder: Path,
    layout: HfLayout,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    mask_token_id: int,
    eos_token_id: int,
    bos_token_id: int | None = None,
    pad_token_id: int | None = None,
    dtype: torch.dtype | None,
    max_shard_bytes: int,
) -> None:
    """Writes config.json and safetensors of our model as the published code of the layout reads them.

    dtype: of the written tensors; None: unchanged. max_shard_bytes: largest safetensors file.
    """
    names = {layout.published_name(ours): ours for ours in tensors}
    added = zero_biases(layout, config)
    dtypes = {tensor.dtype for tensor in tensors.values()}
    common = dtype or (dtypes.pop() if len(dtypes) == 1 else torch.float32)
    zeros = {name: torch.zeros(shape, dtype=common) for name, shape in added.items()}
    source = _Joined(Renamed(tensors, names), zeros)
    sizes = {name: source[name].numel() * (dtype or source[name].dtype).itemsize for name in source}
    write_tensors(folder, source, sizes, dtype, max_shard_bytes)
    dtype_name = str(common).removeprefix("torch.")
    content = write_config(layout, config, mask_token_id, eos_token_id, dtype_name)
    optional = {"bos_token_id": bos_token_id, "pad_token_id": pad_token_id}
    content = {**content, **{name: index for name, index in optional.items() if index is not None}}
    write_json(folder / CONFIG_FILE, content)


def zero_biases(layout: HfLayout, config: ModelConfig) -> dict[str, tuple[int]]:
    """Shapes of biases that the published code always has and our model lacks; they are exported as zeros."""
    if layout.qkv_bias is not QkvBias.ALWAYS or config.attention_bias:
        return {}
    widths = {"q": config.hidden_size} | dict.fromkeys("kv", config.num_key_value_heads * config.head_dim)
    return {
        layout.published_name(f"model.layers.{n}.self_attn.{head}_proj.bias"): (width,)
        for n in range(config.num_hidden_layers)
        for head, width in widths.items()
    }


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of the model by name, without allocating them."""
    with torch.device("meta"), _NoInitialisation():
        return {name: tuple(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}


def expected_shapes(config: ModelConfig, origin: str, num_tensors: int) -> dict[str, tuple[int, ...]]:
    """`tensor_shapes` of an untrusted config, of a checkpoint with `num_tensors` tensors.

    Raises UserError, naming `origin`, if the config cannot describe that many tensors.
    """
    if config.vocab_size is None:
        raise UserError(f"{origin}: the config has no vocab_size")
    if config.num_hidden_layers > num_tensors:
        raise UserError(
            f"{origin}: the config has {config.num_hidden_layers} layers, but the checkpoint only {num_tensors} tensors"
        )
    try:
        return tensor_shapes(config)
    except (RuntimeError, TypeError, OverflowError) as error:  # sizes that torch cannot represent
        raise UserError(f"{origin}: no model has these sizes ({' '.join(str(error).split())[:160]})") from error


def load_model(
    config: ModelConfig, tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype | None = None
) -> Transformer:
    """The model with these weights, allocated once and filled tensor by tensor. dtype: None: that of the tensors."""
    with torch.device("meta"), _NoInitialisation():
        model = Transformer(config)
    model = model.to(dtype or tensors[EMBEDDING].dtype).to_empty(device=device)
    fill(model, tensors)
    return model


class _NoInitialisation(TorchFunctionMode):
    """Skips the functions of `torch.nn.init`. On the meta device, `normal_` would import torch._dynamo for a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return None  # torch.nn ignores the result
        return func(*args, **(kwargs or {}))


class _Joined(Mapping[str, Tensor]):
    """The union of several mappings of tensors."""

    def __init__(self, *parts: Mapping[str, Tensor]) -> None:
        self._parts = parts

    def __getitem__(self, name: str) -> Tensor:
        return next(part[name] for part in self._parts if name in part)

    def __iter__(self) -> Iterator[str]:
        for part in self._parts:
            yield from part

    def __len__(self) -> int:
        return sum(map(len, self._parts))


def _unused(files: TensorFiles, layout: HfLayout, config: ModelConfig) -> dict[str, str]:
    """Redundant tensors, with the reason. Raises UserError if the LM head is declared tied but differs."""
    unused = {name: "computed from rope_theta" for name in files if name.endswith("rotary_emb.inv_freq")}
    head, embedding = layout.published_name(LM_HEAD), layout.published_name(EMBEDDING)
    if config.tie_word_embeddings and head in files and embedding in files:
        if not torch.equal(files[head], files[embedding]):
            raise UserError(f"{files.path_of(head)}: the config ties {head} to {embedding}, but they differ")
        unused[head] = f"equal to {embedding}"
    return unused


def _nearest(name: str, others: list[str]) -> str:
    close = difflib.get_close_matches(name, others, n=1, cutoff=0.9)  # tensor names are similar to each other
    return f" (nearest: {close[0]})" if close else ""


def _text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"

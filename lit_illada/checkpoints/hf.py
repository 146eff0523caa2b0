"""How does a published checkpoint become our weights, and our weights a checkpoint that the published code loads?

Every tensor is accounted for, by name and shape; none is ever held twice in memory.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lit_illada.checkpoints.hf_layouts import HfLayout, Json, QkvBias, read_config, write_config
from lit_illada.checkpoints.safetensors_io import TensorFiles, write_tensors
from lit_illada.errors import UserError
from lit_illada.model.config import ModelConfig
from lit_illada.model.initial import fill
from lit_illada.model.transformer import Transformer
from lit_illada.model.weight_check import CheckedTensors
from lit_illada.runtime.checksums import CHECKSUMS_FILE, check_files
from lit_illada.runtime.files import read_json, write_json

CONFIG_FILE = "config.json"
LM_HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


class Renamed(Mapping[str, Tensor]):
    """Tensors under other names: `names` says how each is called in `tensors`."""

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
    """A published checkpoint, every tensor accounted for and none read yet.

    content: its config.json. names: our tensor -> theirs. unused: their tensors that carry nothing of their own, with
    the reason.
    """

    folder: Path
    layout: HfLayout
    content: Json
    config: ModelConfig
    files: TensorFiles
    names: Mapping[str, str]
    unused: Mapping[str, str]

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Under our names, each mapped from its file, and checked, when asked for."""
        return Renamed(CheckedTensors(self.files, str(self.folder)), self.names)


class UnaccountedError(UserError):
    """A checkpoint that does not hold exactly the model's tensors. problems: a line for each tensor."""

    def __init__(self, origin: str, problems: list[str]) -> None:
        self.problems = problems
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        super().__init__(f"{origin}: {'; '.join(problems[:3])}{more}")


def open_hf(folder: Path) -> HfCheckpoint:
    """A folder with config.json and safetensors. Reads no tensor but those that must equal another; runs no code.

    Compares the files with `checksums.json`, which folders that `convert` exported have. Raises UserError.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{folder}: no Hugging Face checkpoint there (no {CONFIG_FILE})")
    if (folder / CHECKSUMS_FILE).is_file():
        check_files(folder / CHECKSUMS_FILE)
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
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], unused: Mapping[str, str]
) -> list[str]:
    """A line for every tensor that is missing, extra or of another shape, with the nearest name."""
    extra = [name for name in found if name not in wanted and name not in unused]
    missing = [name for name in wanted if name not in found]
    problems = [f"{name} is missing{_nearest(name, extra)}" for name in missing]
    problems += [f"{name} has no place in the model{_nearest(name, missing)}" for name in extra]
    for name, shape in wanted.items():
        if name in found and found[name] != shape:
            problems.append(f"{name} has shape {_text(found[name])}, and the config makes it {_text(shape)}")
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
    """config.json and safetensors of our model, as the layout's published code reads them."""
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
    known = {"bos_token_id": bos_token_id, "pad_token_id": pad_token_id}
    content = {**content, **{name: index for name, index in known.items() if index is not None}}
    write_json(folder / CONFIG_FILE, content)


def zero_biases(layout: HfLayout, config: ModelConfig) -> dict[str, tuple[int]]:
    """The biases that the published code always has and our model has not: they are written as zeros."""
    if layout.qkv_bias is not QkvBias.ALWAYS or config.attention_bias:
        return {}
    widths = {"q": config.hidden_size} | dict.fromkeys("kv", config.num_key_value_heads * config.head_dim)
    return {
        layout.published_name(f"model.layers.{n}.self_attn.{head}_proj.bias"): (width,)
        for n in range(config.num_hidden_layers)
        for head, width in widths.items()
    }


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the model, under our names. Allocates none."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}


def expected_shapes(config: ModelConfig, origin: str, num_tensors: int) -> dict[str, tuple[int, ...]]:
    """`tensor_shapes` of a config from a checkpoint of `num_tensors` tensors, which may say anything.

    Raises UserError, naming `origin`, for a config that no model of so many tensors has.
    """
    if config.vocab_size is None:
        raise UserError(f"{origin}: its config has no vocab_size, so it describes no weights")
    if config.num_hidden_layers > num_tensors:
        raise UserError(
            f"{origin}: the config says {config.num_hidden_layers} layers, the checkpoint holds {num_tensors} tensors"
        )
    try:
        return tensor_shapes(config)
    except (RuntimeError, TypeError, OverflowError) as error:  # sizes beyond what torch can describe
        raise UserError(f"{origin}: no model has these sizes ({' '.join(str(error).split())[:160]})") from error


def load_model(
    config: ModelConfig, tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype | None = None
) -> Transformer:
    """The model with these weights: allocated once, then filled tensor by tensor. dtype: None is the tensors' own."""
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to(dtype or tensors[EMBEDDING].dtype).to_empty(device=device)
    fill(model, tensors)
    return model


class _Joined(Mapping[str, Tensor]):
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
    """Tensors that repeat what is known otherwise. Raises UserError for a head that says it is tied and differs."""
    unused = {name: "computed from rope_theta" for name in files if name.endswith("rotary_emb.inv_freq")}
    head, embedding = layout.published_name(LM_HEAD), layout.published_name(EMBEDDING)
    if config.tie_word_embeddings and head in files and embedding in files:
        if not torch.equal(files[head], files[embedding]):
            raise UserError(
                f"{files.path_of(head)}: the config says that {head} is tied to {embedding}, but they differ"
            )
        unused[head] = f"equal to {embedding}"
    return unused


def _nearest(name: str, others: list[str]) -> str:
    close = difflib.get_close_matches(name, others, n=1, cutoff=0.9)  # most names share most of their letters
    return f" (nearest: {close[0]})" if close else ""


def _text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"

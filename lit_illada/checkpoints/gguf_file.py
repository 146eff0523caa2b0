"""Reading of GGUF files, the format of llama.cpp, of Llama and Qwen2 models.

The `gguf` package (extra `gguf`) parses a file and dequantises its tensors, which are memory-mapped and read on access.
Every tensor is accounted for by name and shape.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_illada.checkpoints.gguf_tokenizer import tokenizer_of
from lit_illada.checkpoints.hf import Renamed, UnaccountedError, expected_shapes, unaccounted
from lit_illada.checkpoints.hf_layouts import HfLayout, Json, read_config
from lit_illada.errors import UserError, unknown
from lit_illada.model.config import ModelConfig
from lit_illada.model.weight_check import CheckedTensors

_MAGIC = b"GGUF"
_ARCHITECTURES = ("llama", "qwen2")
_MODULES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
# field of config.json -> key below the architecture's name
_SIZES = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
}
# settings that change the function; a file without the key has the supported value
_CONSTANTS = {
    "expert_count": 0,
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,  # scales linearly in a file without the type
    "rope.scale_linear": 1.0,
    "attention.causal": True,
}


@dataclass(frozen=True, eq=False)
class GgufCheckpoint:
    """A GGUF file whose tensors are all accounted for and not read yet."""

    origin: Path
    """The file."""
    layout: HfLayout
    """The Hugging Face layout of the same architecture."""
    content: Json
    """What its config.json would contain."""
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    """Float32 tensors under our names, dequantised and checked on access."""
    names: Mapping[str, str]
    """Our tensor name -> name in the file."""
    tokenizer_json: str
    tokenizer_config: dict[str, Any]


def is_gguf(path: Path) -> bool:
    """Whether the name or the first bytes of a file are those of GGUF."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix == ".gguf" or file.read(len(_MAGIC)) == _MAGIC


def open_gguf(path: Path) -> GgufCheckpoint:
    """Opens a GGUF file. Raises UserError for one that is damaged or unsupported, or if the package is missing."""
    fields, stored = _parse(path)
    content = _config_content(fields, stored, path)
    hf_layout, config = read_config(content, str(path))
    layout = replace(hf_layout, block="blk.", modules=_MODULES)
    shapes = {name: _shape(tensor) for name, tensor in stored.items()}
    expected = expected_shapes(config, str(path), len(stored))
    names = {ours: layout.published_name(ours) for ours in expected}
    if problems := unaccounted(shapes, {names[ours]: shape for ours, shape in expected.items()}, {}):
        raise UnaccountedError(str(path), problems)
    _check_quantisation(stored, path)
    tokenizer_json, tokenizer_config = tokenizer_of(fields, path)
    tensors = CheckedTensors(Renamed(_Dequantised(stored, config, hf_layout.model_type), names), str(path))
    return GgufCheckpoint(path, hf_layout, content, config, tensors, names, tokenizer_json, tokenizer_config)


class _Dequantised(Mapping[str, Tensor]):
    """Tensors by name in the file as float32 with the rows of our model.

    llama.cpp rotates the pairs (2i, 2i + 1) of Llama's heads and stores the rows of Q and K in that order; our rotation
    of the pairs (i, i + D/2), that of Hugging Face, needs them back in theirs. Qwen2's rows are stored unchanged.
    """

    def __init__(self, stored: Mapping[str, Any], config: ModelConfig, architecture: str) -> None:
        self._stored = stored
        heads = {"attn_q.weight": config.num_attention_heads, "attn_k.weight": config.num_key_value_heads}
        self._interleaved = heads if architecture == "llama" else {}

    def __getitem__(self, name: str) -> Tensor:
        import gguf

        tensor = self._stored[name]
        array = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(_shape(tensor))
        num_heads = self._interleaved.get(name.split(".", 2)[-1])
        if num_heads is not None:
            array = array.reshape(num_heads, -1, 2, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
        return torch.from_numpy(np.array(array, np.float32))  # copied: a view of the file is read-only

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


class _CutOffError(ValueError):
    """A length or an offset points behind the end of the file."""


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and stored tensors by name."""
    try:
        import gguf
    except ImportError as error:
        raise UserError(f"{path}: reading GGUF needs a package: pip install 'lit-illada[gguf]'") from error
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
    if start != _MAGIC:
        raise UserError(f"{path}: not a GGUF file: it begins with {start!r}, not {_MAGIC!r}")

    class Reader(gguf.GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            # the base class returns fewer values behind the end, and would follow a damaged length for hours
            end = int(offset) + int(count) * np.dtype(dtype).itemsize
            if end > len(self.data):
                raise _CutOffError(f"it ends at byte {len(self.data):,}, but needs {end:,}")
            return super()._get(offset, dtype, count, override_order)

    try:
        reader = Reader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"{path}: the GGUF file is cut off or damaged: {reason}"
            if isinstance(error, _CutOffError)
            else f"{path}: the GGUF file is damaged, or newer than the gguf package, {version('gguf')}: {reason}"
        ) from error
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def _config_content(fields: Mapping[str, Any], stored: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The file's metadata as a config.json. Raises UserError for missing keys and unsupported settings."""
    architecture = fields.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise unknown(f"architecture in {path}:", architecture, _ARCHITECTURES)
    if (num_files := _number(fields, "split.count", path, int, 1)) > 1:
        raise UserError(f"{path}: one of {num_files} files of a model: merge them with llama-gguf-split")
    for key, allowed in _CONSTANTS.items():
        if (value := fields.get(f"{architecture}.{key}", allowed)) != allowed:
            raise UserError(f"{path}: {architecture}.{key} is {value!r}, but only {allowed!r} is supported")
    sizes = {ours: _number(fields, f"{architecture}.{key}", path, int) for ours, key in _SIZES.items()}
    heads = sizes["num_attention_heads"]
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if (width := fields.get(f"{architecture}.{key}")) not in (None, sizes["hidden_size"] // max(heads, 1)):
            raise UserError(f"{path}: {architecture}.{key} is {width!r}, but only the width of a head is supported")
    embedding = stored.get("token_embd.weight")
    if embedding is None:
        raise UserError(f"{path}: token_embd.weight is missing")
    named = ((name, fields.get(f"tokenizer.ggml.{key}_token_id")) for name, key in _TOKEN_IDS.items())
    return {
        "model_type": architecture,
        "vocab_size": _shape(embedding)[0],
        **sizes,
        "num_key_value_heads": _number(fields, f"{architecture}.attention.head_count_kv", path, int, heads),
        "rope_theta": _number(fields, f"{architecture}.rope.freq_base", path, float, 10000.0),
        "rms_norm_eps": _number(fields, f"{architecture}.attention.layer_norm_rms_epsilon", path, float),
        "tie_word_embeddings": "output.weight" not in stored,
        **{name: index for name, index in named if index is not None},
    }


_TOKEN_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding", "mask_token_id": "mask"}


def _number(fields: Mapping[str, Any], key: str, path: Path, kind: Any, absent: Any = None) -> Any:
    """The value of a key. float: the shortest decimal of the stored float32. absent: None where the key is required."""
    value = fields.get(key, absent)
    if value is None:
        raise UserError(f"{path}: no field {key}")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{path}: {key} is {str(value)[:80]}, not {'a whole number' if kind is int else 'a number'}")
    return float(str(np.float32(value))) if kind is float else value


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(reversed(tensor.shape.tolist()))  # the file has the fastest dimension first


def _check_quantisation(stored: Mapping[str, Any], path: Path) -> None:
    """Raises UserError for a type that the package cannot dequantise."""
    import gguf

    first_of = {tensor.tensor_type: name for name, tensor in reversed(list(stored.items()))}
    for kind, name in first_of.items():
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError as error:
            raise UserError(
                f"{path}: {name} is stored as {kind.name}, which the gguf package cannot dequantise: convert the model "
                "to another type, such as Q8_0 or F16"
            ) from error

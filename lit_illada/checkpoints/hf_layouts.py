"""Layouts of Hugging Face checkpoints: names of tensors and config fields, and what the published code computes.

LAYOUTS has one row per `model_type`, keyed by its lower-case name. A config.json is accepted only if our network
computes the same function; unsupported settings are rejected by name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from lit_illada.errors import UserError, unknown
from lit_illada.model.config import ModelConfig

Json = Mapping[str, Any]


class QkvBias(StrEnum):
    """Whether models of a layout have biases on queries, keys and values only."""

    NEVER = "never"
    SWITCH = "switch"  # depends on a field of config.json
    ALWAYS = "always"


@dataclass(frozen=True)
class Constant:
    """A field of config.json of which our network supports only some values."""

    allowed: tuple[Any, ...]
    """Supported values; the first is written on export."""
    absent: Any
    """Default of the published code."""


@dataclass(frozen=True)
class HfLayout:
    """A family of Hugging Face checkpoints."""

    model_type: str
    """`model_type` in config.json."""
    architecture: str
    """Class in the published code."""
    is_causal: bool
    """Whether the published code masks attention causally."""
    predicts_next: bool
    """Whether its logits predict the next token instead of the token at the position."""
    qkv_bias: QkvBias
    keys: Mapping[str, str]
    """Field of ModelConfig -> field of config.json."""
    defaults: Json
    """Defaults of the published code by field of config.json; other fields are required."""
    constants: Mapping[str, Constant]
    """Fields of config.json with a restricted value."""
    code: str | None = None
    """Hub repository with the modelling code; None: transformers itself."""
    auto_map: Mapping[str, str] = field(default_factory=dict)
    """Classes in that repository by transformers' auto class."""
    mask_token: str | None = None
    """Text of [M] in its tokenizers; None: it has none."""
    block: str = "model.layers."
    """Prefix of the tensors of a layer, before its number."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Our module name -> published one, within a layer or the whole model; names not listed are equal."""

    def published_name(self, ours: str) -> str:
        """Name of our tensor in the published files."""
        stem, _, kind = ours.rpartition(".")
        if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem):
            number, module = match.groups()
            return f"{self.block}{number}.{self.modules.get(module, module)}.{kind}"
        return f"{self.modules.get(stem, stem)}.{kind}"

    def why_not(self, config: ModelConfig) -> str | None:
        """The reason why the published code cannot compute our model, or None."""
        if config.is_causal != self.is_causal:
            return f"its attention is {'causal' if self.is_causal else 'bidirectional'}"
        if config.block_length is not None:
            return f"it has no attention in blocks of {config.block_length} tokens"
        if config.predicts_next != self.predicts_next:
            return f"it predicts {'the next token' if self.predicts_next else 'each token at its own position'}"
        if config.attention_bias and self.qkv_bias is QkvBias.NEVER:
            return "it does not support biases on queries, keys and values only"
        return None


def read_config(content: Json, origin: str) -> tuple[HfLayout, ModelConfig]:
    """Layout and ModelConfig of a config.json. Raises UserError for a missing field or an unsupported setting."""
    model_type = content.get("model_type")
    known = {layout.model_type: layout for layout in LAYOUTS.values()}
    if not isinstance(model_type, str) or model_type not in known:
        raise unknown(f"model_type in {origin}:", model_type, known)
    layout = known[model_type]
    filled = _filled(content, layout, origin)
    for key, constant in layout.constants.items():
        if filled.get(key, constant.absent) not in constant.allowed:
            allowed = " or ".join(map(repr, constant.allowed))
            raise UserError(f"{origin}: {key} is {filled.get(key, constant.absent)!r}, but only {allowed} is supported")
    values = {ours: _value(filled, ours, theirs, layout, origin) for ours, theirs in layout.keys.items()}
    if layout.qkv_bias is QkvBias.ALWAYS:
        values["attention_bias"] = True
    try:
        config = ModelConfig(**values, is_causal=layout.is_causal, predicts_next=layout.predicts_next)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    if filled.get("head_dim") not in (None, config.head_dim):
        raise UserError(
            f"{origin}: head_dim is {filled['head_dim']}, but only hidden_size / heads, {config.head_dim}, is supported"
        )
    return layout, config


def write_config(layout: HfLayout, config: ModelConfig, mask_token_id: int, eos_token_id: int, dtype: str) -> Json:
    """The config.json with which the published code computes our model. dtype: name of a torch dtype."""
    content: dict[str, Any] = {"architectures": [layout.architecture], "model_type": layout.model_type}
    if layout.code is not None:
        # with trust_remote_code transformers fetches the code from there; our export contains none
        content["auto_map"] = {auto: f"{layout.code}--{name}" for auto, name in layout.auto_map.items()}
    content |= {theirs: getattr(config, ours) for ours, theirs in layout.keys.items()}
    content |= {key: constant.allowed[0] for key, constant in layout.constants.items()}
    if layout.model_type == "llada":
        content |= {"vocab_size": config.vocab_size, "mlp_ratio": 4, "rope_full_precision": True, "init_device": "meta"}
        content |= {"attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0, "use_cache": False}
        # the code of the other layouts stops the gradient of the pad token's row; this one requires a pad token, unused
        content["pad_token_id"] = eos_token_id
    if not layout.is_causal:
        content["mask_token_id"] = mask_token_id
    return {**content, "bos_token_id": None, "eos_token_id": eos_token_id, "torch_dtype": dtype}


def layout_for(config: ModelConfig, name: str | None = None) -> HfLayout:
    """The named layout, or the first one whose published code computes the model. Raises UserError if the named one
    cannot, or none."""
    if name is not None:
        if reason := LAYOUTS[name].why_not(config):
            others = ", ".join(other for other, layout in LAYOUTS.items() if layout.why_not(config) is None)
            raise UserError(f"the {name} layout cannot hold this model: {reason}; those that can: {others or 'none'}")
        return LAYOUTS[name]
    if config.block_length is not None:
        raise UserError(
            f"no published layout has attention in blocks of {config.block_length} tokens, in which this model was "
            "trained: convert it with --to lit"
        )
    able = [layout for layout in LAYOUTS.values() if layout.why_not(config) is None]
    assert able, "every model fits a layout: dream those that predict the next token, llada those with biases"
    return able[0]


def _filled(content: Json, layout: HfLayout, origin: str) -> dict[str, Any]:
    """The content with alternative spellings resolved and derived values filled in, as the published code does."""
    filled = dict(content)
    rope = filled.get("rope_parameters") or filled.get("rope_scaling") or {}  # rope_parameters since transformers 5
    is_one = isinstance(rope, dict) and not any(isinstance(value, dict) for value in rope.values())
    kind = rope.get("rope_type", rope.get("type", "default")) if is_one else rope
    if kind != "default":
        raise UserError(f"{origin}: rotary positions are scaled ({kind!r}), but only 'default' is supported")
    if "rope_theta" in rope:
        filled.setdefault("rope_theta", rope["rope_theta"])
    if layout.model_type == "llada":
        if filled.get("embedding_size") is None:
            filled["embedding_size"] = filled.get("vocab_size")
        width, ratio = filled.get("d_model"), filled.get("mlp_ratio")
        if filled.get("mlp_hidden_size") is None and isinstance(width, int) and isinstance(ratio, int):
            filled["mlp_hidden_size"] = ratio * width
        if filled.get("n_kv_heads") is None:
            filled["n_kv_heads"] = 1 if filled.get("multi_query_attention") else filled.get("n_heads")
    elif filled.get("num_key_value_heads") is None:
        filled["num_key_value_heads"] = filled.get("num_attention_heads")
    return filled


def _value(content: Json, ours: str, theirs: str, layout: HfLayout, origin: str) -> Any:
    value = content.get(theirs, layout.defaults.get(theirs))
    if value is None:
        raise UserError(f"{origin}: no field {theirs!r}, which {layout.model_type} checkpoints must have")
    kind = next(item.type for item in fields(ModelConfig) if item.name == ours)
    allowed, wanted = _KINDS.get(kind, ((int,), "a whole number"))
    if type(value) not in allowed:
        raise UserError(f"{origin}: {theirs} is {value!r}, not {wanted}")
    return float(value) if kind is float else value


_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    float: ((int, float), "a number"),
}
_HF_KEYS = {
    name: name
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "rope_theta",
        "rms_norm_eps",
        "tie_word_embeddings",
        "initializer_range",
    )
}
_HF_DEFAULTS = {"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "initializer_range": 0.02}
_SILU = {"hidden_act": Constant(("silu",), "silu")}
# these two also control biases of o_proj and the MLP, which our network never has
_NO_BIAS = {"attention_bias": Constant((False,), False), "mlp_bias": Constant((False,), False)}
_NO_WINDOW = {"use_sliding_window": Constant((False,), False)}

LAYOUTS: dict[str, HfLayout] = {
    "illada": HfLayout(
        model_type="illada",
        architecture="ILLaDAForCausalLM",
        is_causal=False,
        predicts_next=False,
        qkv_bias=QkvBias.NEVER,
        keys=_HF_KEYS,
        defaults={"initializer_range": 0.02},
        constants=_SILU | _NO_BIAS | {"layer_norm_eps": Constant((None,), None)},
        code="GSAI-ML/iLLaDA-8B-Base",
        auto_map={
            "AutoConfig": "configuration_illada.ILLaDAConfig",
            "AutoModel": "modeling_illada.ILLaDAForCausalLM",
            "AutoModelForCausalLM": "modeling_illada.ILLaDAForCausalLM",
        },
        mask_token="<[MASK]>",
    ),
    "llada": HfLayout(
        model_type="llada",
        architecture="LLaDAModelLM",
        is_causal=False,
        predicts_next=False,
        qkv_bias=QkvBias.SWITCH,
        keys={
            "vocab_size": "embedding_size",  # rows of the embedding; vocab_size may be smaller
            "hidden_size": "d_model",
            "intermediate_size": "mlp_hidden_size",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "num_key_value_heads": "n_kv_heads",
            "max_position_embeddings": "max_sequence_length",
            "rope_theta": "rope_theta",
            "rms_norm_eps": "rms_norm_eps",
            "tie_word_embeddings": "weight_tying",
            "initializer_range": "init_std",
            "attention_bias": "include_qkv_bias",
        },
        defaults={
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-5,
            "weight_tying": True,
            "init_std": 0.02,
            "include_qkv_bias": False,
            "max_sequence_length": 1024,
        },
        constants={
            "activation_type": Constant(("silu",), "swiglu"),
            "alibi": Constant((False,), False),
            "attention_layer_norm": Constant((False,), False),
            "bias_for_layer_norm": Constant((False, None), None),
            "block_group_size": Constant((1,), 1),
            "block_type": Constant(("llama",), "sequential"),
            "include_bias": Constant((False,), False),
            "input_emb_norm": Constant((False,), False),
            "layer_norm_type": Constant(("rms",), "default"),
            "layer_norm_with_affine": Constant((True,), True),
            "rope": Constant((True,), False),
            "scale_logits": Constant((False,), False),
        },
        code="GSAI-ML/LLaDA-8B-Base",
        auto_map={
            "AutoConfig": "configuration_llada.LLaDAConfig",
            "AutoModel": "modeling_llada.LLaDAModelLM",
            "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        },
        mask_token="<|mdm_mask|>",
        block="model.transformer.blocks.",
        modules={
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "ff_norm",
            "self_attn.q_proj": "q_proj",
            "self_attn.k_proj": "k_proj",
            "self_attn.v_proj": "v_proj",
            "self_attn.o_proj": "attn_out",
            "mlp.gate_proj": "ff_proj",
            "mlp.up_proj": "up_proj",
            "mlp.down_proj": "ff_out",
            "model.embed_tokens": "model.transformer.wte",
            "model.norm": "model.transformer.ln_f",
            "lm_head": "model.transformer.ff_out",
        },
    ),
    "dream": HfLayout(
        model_type="Dream",
        architecture="DreamModel",
        is_causal=False,
        predicts_next=True,
        qkv_bias=QkvBias.ALWAYS,
        keys=_HF_KEYS,
        defaults=_HF_DEFAULTS,
        constants=_SILU | _NO_WINDOW | {"use_mrope": Constant((False,), False)},
        code="Dream-org/Dream-v0-Base-7B",
        auto_map={"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
        mask_token="<|mask|>",
    ),
    "llama": HfLayout(
        model_type="llama",
        architecture="LlamaForCausalLM",
        is_causal=True,
        predicts_next=False,
        qkv_bias=QkvBias.NEVER,
        keys=_HF_KEYS,
        defaults=_HF_DEFAULTS,
        constants=_SILU | _NO_BIAS,
    ),
    "qwen2": HfLayout(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        is_causal=True,
        predicts_next=False,
        qkv_bias=QkvBias.ALWAYS,
        keys=_HF_KEYS,
        defaults=_HF_DEFAULTS,
        constants=_SILU | _NO_WINDOW,
    ),
}

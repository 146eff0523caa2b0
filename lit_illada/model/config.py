"""Model config, under Hugging Face's field names, and parameter counts."""

from dataclasses import dataclass, replace
from enum import StrEnum

from lit_illada.errors import UserError


class AttentionKernel(StrEnum):
    """Attention kernels; `auto` selects one by device, dtype and installed packages, and logs it."""

    AUTO = "auto"  # the fastest kernel that runs here; the log names it
    MATMUL = "matmul"  # explicit scores: the fastest on a CPU in bfloat16 for short rows
    SDPA = "sdpa"  # torch's scaled_dot_product_attention: any device and dtype
    VARLEN = "varlen"  # torch.nn.attention.varlen: CUDA, half precision
    FLASH = "flash"  # the flash-attn package, FlashAttention 2: CUDA, half precision
    FLASH4 = "flash4"  # the flash-attn-4 package: CUDA from Hopper on, half precision
    FLEX = "flex"  # torch's flex_attention, compiled: CUDA; for block diffusion, whose mask it skips by tiles


@dataclass(frozen=True)
class ModelConfig:
    """A bidirectional or causal pre-norm transformer: RMSNorm, SwiGLU, rotary positions, no time input."""

    vocab_size: int | None = None
    """Rows of the embedding; None: the size of the tokenizer."""
    hidden_size: int = 256
    """Width of the residual stream."""
    intermediate_size: int = 704
    """Width of the SwiGLU feed-forward layer."""
    num_hidden_layers: int = 6
    """Transformer blocks."""
    num_attention_heads: int = 4
    """Query heads per layer."""
    num_key_value_heads: int = 2
    """Key-value heads per layer; fewer than query heads: grouped-query attention."""
    max_position_embeddings: int = 1024
    """Longest sequence, tokens."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rms_norm_eps: float = 1e-6
    """Epsilon of every RMSNorm."""
    tie_word_embeddings: bool = True
    """Whether the LM head uses the embedding matrix."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights of linear layers."""
    is_causal: bool = False
    """Whether tokens attend to earlier tokens only, for autoregressive baselines."""
    attention_bias: bool = False
    """Whether queries, keys and values have biases, as in Qwen2; no other layer has."""
    predicts_next: bool = False
    """Whether the logits of a position come from the position before it, as in Dream (arXiv 2508.15487)."""
    block_length: int | None = None
    """Tokens per block of block-causal attention, set by objective.block_length; None: attention sees all tokens."""
    attention: AttentionKernel = AttentionKernel.AUTO
    """Kernel that computes attention."""

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        for name in (*sizes, "max_position_embeddings", "rope_theta", "rms_norm_eps", "initializer_range"):
            if not getattr(self, name) > 0:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be above 0")
        if self.vocab_size is not None and self.vocab_size < 2:
            raise UserError(f"model.vocab_size is {self.vocab_size}: it must be 2 or more, or null for the tokenizer's")
        if self.is_causal and self.predicts_next:
            raise UserError(
                "model.predicts_next and model.is_causal are both true: a causal model's objective "
                "shifts its inputs already, so set one of them to false"
            )
        if self.block_length is not None and self.block_length < 1:
            raise UserError(f"model.block_length is {self.block_length}: it must be 1 or more, or null")
        if self.is_causal and self.block_length is not None:
            raise UserError(
                f"model.is_causal is true and objective.block_length is {self.block_length}: block-causal attention "
                "replaces the causal one: set model.is_causal=false, or objective.block_length=null"
            )
        self._must_divide("num_attention_heads", "hidden_size")
        self._must_divide("num_key_value_heads", "num_attention_heads")
        if self.head_dim % 2:
            raise UserError(
                f"model.hidden_size / model.num_attention_heads is {self.head_dim}: rotary positions need an even size"
            )

    def _must_divide(self, part: str, whole: str) -> None:
        if getattr(self, whole) % getattr(self, part):
            raise UserError(
                f"model.{part} is {getattr(self, part)}: it must divide model.{whole}, which is {getattr(self, whole)}"
            )

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def known_vocab_size(self) -> int:
        """`vocab_size`, which must not be None."""
        assert self.vocab_size is not None, "vocab_size is None: call with_vocab_size first"
        return self.vocab_size

    def with_vocab_size(self, tokenizer_size: int) -> "ModelConfig":
        """The config for a tokenizer of this size. Raises UserError if `vocab_size` is set and too small."""
        if self.vocab_size is None:
            return replace(self, vocab_size=tokenizer_size)
        if self.vocab_size < tokenizer_size:
            raise UserError(
                f"model.vocab_size is {self.vocab_size} but the tokenizer has {tokenizer_size} tokens: "
                f"set model.vocab_size to {tokenizer_size} or more, or to null for the tokenizer's"
            )
        return self


def num_parameters(config: ModelConfig) -> int:
    """Number of parameters; a tied embedding counts once."""
    tables = 1 if config.tie_word_embeddings else 2
    return num_non_embedding_parameters(config) + tables * config.known_vocab_size * config.hidden_size


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """Number of parameters by part of the model; a tied LM head counts 0."""
    layers, width = config.num_hidden_layers, config.hidden_size
    mlp = 3 * layers * width * config.intermediate_size
    norms = (2 * layers + 1) * width
    table = config.known_vocab_size * width
    return {
        "embedding": table,
        "attention": num_non_embedding_parameters(config) - mlp - norms,
        "mlp": mlp,
        "norms": norms,
        "lm_head": 0 if config.tie_word_embeddings else table,
    }


def num_non_embedding_parameters(config: ModelConfig) -> int:
    """Number of parameters without embedding and LM head."""
    biases = config.hidden_size + 2 * config.num_key_value_heads * config.head_dim if config.attention_bias else 0
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    return num_linear_parameters(config) + config.num_hidden_layers * biases + norms


def num_linear_parameters(config: ModelConfig) -> int:
    """Number of weights of the blocks' linear layers, by which every token is multiplied."""
    key_value_width = config.num_key_value_heads * config.head_dim
    attention = 2 * config.hidden_size * (config.hidden_size + key_value_width)
    return config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)

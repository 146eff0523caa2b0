"""Pre-norm transformer without dropout or time input, as released with iLLaDA (arXiv 2606.25331).

Module names are those of the released checkpoints. Shapes: B rows, T tokens per row, D width, H query heads,
K key-value heads, V vocabulary, M selected tokens.
"""

from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_illada.batch import Layout, TokenScores
from lit_illada.model.attention import Attention
from lit_illada.model.config import ModelConfig
from lit_illada.model.initial import InitialWeights, fill
from lit_illada.model.kv_cache import KeyValueCache, LayerWindow
from lit_illada.model.lm_head import token_scores
from lit_illada.model.rope import Rotation, rotate, rotation


class Transformer(nn.Module):
    """A masked-diffusion (or, if causal, autoregressive) language model.

    Parameters are uninitialised until `init_weights` or a checkpoint fills them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = (
            None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.known_vocab_size, bias=False)
        )

    @overload
    def forward(
        self,
        input_ids: Tensor,
        layout: Layout,
        select: Tensor | None = None,
        *,
        cache: KeyValueCache | None = None,
        start: int = 0,
    ) -> Tensor: ...
    @overload
    def forward(self, input_ids: Tensor, layout: Layout, select: Tensor | None, targets: Tensor) -> TokenScores: ...

    def forward(
        self,
        input_ids: Tensor,
        layout: Layout,
        select: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        cache: KeyValueCache | None = None,
        start: int = 0,
    ) -> Tensor | TokenScores:
        """Logits, or the scores of `targets`, of the selected tokens; the LM head processes only those.

        Args:
            input_ids: (B, T) int64; with a cache it may be the window of the layout's columns that begins at `start`.
            select: (B, T) bool; None: all tokens.
            targets: (M,) int64 in the row-major order of `select`.
            cache: keys and values of the columns outside the window; those of the window are written to it.

        Returns:
            The scores of `targets`; without targets logits (M, V), or (B, T, V) when `select` is None.
        """
        num_selected = None if targets is None else targets.numel()
        hidden = self.model(input_ids, layout, select, cache, start, num_selected)
        if targets is None:
            return F.linear(hidden, self.lm_head_weight)
        return token_scores(hidden.reshape(-1, hidden.shape[-1]), self.lm_head_weight, targets.reshape(-1))

    @property
    def lm_head_weight(self) -> Tensor:
        """(V, D); the embedding matrix if tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def init_weights(self, seed: int) -> None:
        """Fills the parameters with iLLaDA's released initialisation; see `InitialWeights`."""
        fill(self, InitialWeights(self, self.config, seed))


class Backbone(nn.Module):
    """Embedding, blocks and final norm: everything but the LM head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.known_vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        input_ids: Tensor,
        layout: Layout,
        select: Tensor | None,
        cache: KeyValueCache | None = None,
        start: int = 0,
        num_selected: int | None = None,
    ) -> Tensor:
        """Normalised hidden states of the selected tokens, (M, D), or of all, (B, T, D).

        num_selected: M if known, which saves the GPU from waiting for the CPU; None: counted.
        """
        x = self.embed_tokens(input_ids)
        num_columns = layout.position_ids.shape[1]
        columns = slice(start, start + input_ids.shape[1])
        window = None if input_ids.shape[1] == num_columns else columns
        assert window is None or cache is not None, "a window needs a cache for what lies outside it"
        is_in_blocks = self.config.block_length is not None
        assert is_in_blocks == (layout.blocks is not None), "a model with block_length needs a layout with blocks"
        config, dtype = self.config, _compute_dtype(x)
        attention = Attention.plan(config.attention, layout, config.is_causal, x.device, dtype, config.head_dim, window)
        rope = rotation(layout.position_ids[:, columns], config.head_dim, config.rope_theta)
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, attention, None if cache is None else cache.window(index, start, num_columns))
        if self.config.predicts_next:
            x = _shifted_right(x, layout, columns)
        return self.norm(x if select is None else _selected(x, select, num_selected))


class Block(nn.Module):
    """Attention and MLP, each with a residual connection. Blocks are the unit of compilation, sharding and activation
    checkpointing."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, rope: Rotation, attention: Attention, cached: LayerWindow | None = None) -> Tensor:
        """x: (B, T, hidden_size); returns the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), rope, attention, cached)
        return x + self.mlp(self.post_attention_layernorm(x))


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.head_dim = config.hidden_size, config.head_dim
        key_value_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, width, bias=config.attention_bias)
        self.k_proj = nn.Linear(width, key_value_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(width, key_value_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, rope: Rotation, attention: Attention, cached: LayerWindow | None = None) -> Tensor:
        q, k, v = (proj(x_BTD).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, rope), rotate(k, rope)
        if cached is not None:
            k, v = cached.write(k, v)
        out = attention.attend(q, k, v)
        return self.o_proj(out.flatten(-2))


class SwiGLU(nn.Module):
    """silu(x·gate) ∘ (x·up), projected down (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def _selected(x_BTD: Tensor, select_BT: Tensor, num_selected: int | None) -> Tensor:
    """(M, D): hidden states of the selected tokens, row-major."""
    if num_selected is None:
        return x_BTD[select_BT]
    # x[select] would make the CPU wait for all layers to learn M, and the GPU then for the launch of the LM head
    indices_M = torch.nonzero_static(select_BT.flatten(), size=num_selected)[:, 0]
    return x_BTD.flatten(0, 1).index_select(0, indices_M)


def _shifted_right(x_BTD: Tensor, layout: Layout, columns: slice) -> Tensor:
    """Gives each position the hidden state of the one before it; the first of a segment is not shifted.

    The first column of a window gets the last one's state. It is never selected: a window begins one column early. The
    state before a noisy block is that of the clean copy, which generation sees there.
    """
    before_BTD = x_BTD.roll(1, dims=1)
    if layout.num_noisy:
        assert layout.blocks is not None
        noisy_BTD, clean_BTD = before_BTD.chunk(2, dim=1)
        is_start_BT = (layout.blocks != layout.blocks.roll(1, dims=1))[:, : layout.num_noisy]
        before_BTD = torch.cat([torch.where(is_start_BT[..., None], clean_BTD, noisy_BTD), clean_BTD], 1)
    return torch.where((layout.position_ids[:, columns] == 0)[..., None], x_BTD, before_BTD)


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of linear layers and attention: the autocast dtype if enabled."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype

"""Floating-point operations of a batch: the numerator of model FLOPs utilisation (MFU).

A multiply-add counts as two. Norms, rotations and the softmax are not counted, as usual. Attention counts pairs of
tokens that attend to each other: L² in a segment of L tokens, L·(L + 1)/2 for a causal model and L·(L + N)/2 with
blocks of N tokens, whatever the kernel computes. (MFU of PaLM, arXiv 2204.02311, counts L² for causal models too.)
Training in blocks processes rows [noisy | clean]: everything but the LM head twice.

L·(L + N)/2 is exact where N divides L, and by at most N²/8 pairs too high elsewhere. The exact number would take a
synchronisation with the device.
"""

from lit_illada.batch import Layout
from lit_illada.model.config import ModelConfig, num_linear_parameters


def training_flops(
    config: ModelConfig, layout: Layout, num_selected: int, num_adapters: int | None = None, *, copies: int = 1
) -> int:
    """FLOPs of forward and backward pass, without recomputation of activations or logits.

    num_selected: tokens that reach the LM head, over all copies.
    num_adapters: parameters of adapters where only those are trained; None: all weights are.
    copies: number of times the model processes `layout` (2 with complementary masks).
    """
    linear, attention, head = _forward_parts(config, layout, num_selected)
    copies *= 1 if config.block_length is None else 2
    linear, attention = copies * linear, copies * attention
    if num_adapters is None:
        return 3 * (linear + attention + head)
    num_tokens = copies * layout.position_ids.numel()
    return 2 * (linear + head) + 3 * attention + 6 * num_adapters * num_tokens


def forward_flops(config: ModelConfig, layout: Layout, num_selected: int) -> int:
    """FLOPs of the forward pass: linear layers, attention within segments, LM head on selected tokens."""
    return sum(_forward_parts(config, layout, num_selected))


def _forward_parts(config: ModelConfig, layout: Layout, num_selected: int) -> tuple[int, int, int]:
    num_tokens = layout.position_ids.numel()
    linear = 2 * num_linear_parameters(config) * num_tokens
    num_pairs, block_length = layout.num_pairs, 1 if config.is_causal else config.block_length
    if block_length is not None:  # Σ L(L + N)/2 over the segments, from Σ L² and Σ L
        num_pairs = min(num_pairs, (num_pairs + block_length * num_tokens) // 2)
    attention = 4 * config.hidden_size * config.num_hidden_layers * num_pairs
    return linear, attention, 2 * config.hidden_size * config.known_vocab_size * num_selected

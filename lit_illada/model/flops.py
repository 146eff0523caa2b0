"""How many floating-point operations does a batch really need? The numerator of MFU.

A multiplication and an addition count as two. Norms, rotations and the softmax are left out, as is custom.
"""

from itertools import pairwise

from torch import Tensor

from lit_illada.model.config import ModelConfig, num_linear_parameters


def training_flops(config: ModelConfig, cu_seqlens: Tensor, num_selected: int) -> int:
    """Forward and backward. What is computed again in the backward pass (activations, logits) is no useful work."""
    return 3 * forward_flops(config, cu_seqlens, num_selected)


def forward_flops(config: ModelConfig, cu_seqlens: Tensor, num_selected: int) -> int:
    """Linear layers for every token, full (not causal) attention within every segment, the LM head on selected rows.

    cu_seqlens: (S + 1,), the segments' borders; read on the host, which on a GPU waits for the device.
    """
    borders = cu_seqlens.tolist()
    token_pairs = sum((end - start) ** 2 for start, end in pairwise(borders))
    linear = 2 * num_linear_parameters(config) * borders[-1]
    attention = 4 * config.hidden_size * config.num_hidden_layers * token_pairs
    return linear + attention + 2 * config.hidden_size * config.known_vocab_size * num_selected

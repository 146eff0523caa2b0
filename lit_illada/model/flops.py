"""How many floating-point operations does a batch really need? The numerator of MFU.

A multiplication and an addition count as two. Norms, rotations and the softmax are left out, as is custom.
"""

from lit_illada.batch import Layout
from lit_illada.model.config import ModelConfig, num_linear_parameters


def training_flops(config: ModelConfig, layout: Layout, num_selected: int, num_adapters: int | None = None) -> int:
    """Forward and backward. What is computed again in the backward pass (activations, logits) is no useful work.

    num_adapters: parameters of adapters that are all that is trained; of frozen weights no gradient is computed.
    """
    linear, attention, head = _forward_parts(config, layout, num_selected)
    if num_adapters is None:
        return 3 * (linear + attention + head)
    return 2 * (linear + head) + 3 * attention + 6 * num_adapters * layout.position_ids.numel()


def forward_flops(config: ModelConfig, layout: Layout, num_selected: int) -> int:
    """Linear layers for every token, full (not causal) attention within every segment, the LM head on selected rows."""
    return sum(_forward_parts(config, layout, num_selected))


def _forward_parts(config: ModelConfig, layout: Layout, num_selected: int) -> tuple[int, int, int]:
    linear = 2 * num_linear_parameters(config) * layout.position_ids.numel()
    attention = 4 * config.hidden_size * config.num_hidden_layers * layout.num_pairs
    return linear, attention, 2 * config.hidden_size * config.known_vocab_size * num_selected

"""Activation checkpointing: recomputes part of a block's activations in the backward pass.

`selective` saves the outputs of linear layers and of attention kernels, and recomputes norms, rotary embeddings and the
MLP's product. Of the `matmul` attention it saves only the linear layers, because the scores are quadratic in the row's
length. The outputs of flex_attention and FlashAttention 4 are recomputed, too, because no operator that torch
knows computes them. torchtitan, from which the idea is taken, saves every second matrix product.
"""

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from lit_illada.training.config.parallel import ActivationCheckpointing


def checkpoint_activations(block: nn.Module, which: ActivationCheckpointing) -> None:
    """Apply activation checkpointing to a block, in place, before sharding and compiling.

    No module is wrapped, so parameter names do not change.
    """
    if which is ActivationCheckpointing.none:
        return
    options: dict[str, Any] = {}
    if which is ActivationCheckpointing.selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _save_expensive_ops)

    # blocks use no random numbers, so no generator state needs to be saved
    block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, **options)  # type: ignore[method-assign]


def _save_expensive_ops(
    context: SelectiveCheckpointContext, operation: Any, *args: Any, **kwargs: Any
) -> CheckpointPolicy:
    is_expensive = operation.name() in _EXPENSIVE if hasattr(operation, "name") else False
    return CheckpointPolicy.MUST_SAVE if is_expensive else CheckpointPolicy.PREFER_RECOMPUTE


# by name, because operators of kernels that are not installed do not exist
_EXPENSIVE = {
    "aten::mm",
    "aten::addmm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "torch_attn::_varlen_attn",
    "flash_attn::_flash_attn_varlen_forward",
}

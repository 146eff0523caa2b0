"""Which activations of a block are kept for the backward pass, and which are computed again?"""

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
    """In place, before sharding and compiling. The block keeps its parameters' names: no module is wrapped."""
    if which is ActivationCheckpointing.none:
        return
    options: dict[str, Any] = {}
    if which is ActivationCheckpointing.selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_what_is_dear)

    # nothing in a block is drawn at random, so that there is no generator's state to keep
    block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, **options)  # type: ignore[method-assign]


def _keep_what_is_dear(
    context: SelectiveCheckpointContext, operation: Any, *args: Any, **kwargs: Any
) -> CheckpointPolicy:
    is_dear = operation.name() in _DEAR if hasattr(operation, "name") else False
    return CheckpointPolicy.MUST_SAVE if is_dear else CheckpointPolicy.PREFER_RECOMPUTE


# by name: kernels that are not installed have no operator to be named by
_DEAR = {
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

"""Sharded training: the Lightning strategy over a device mesh, and the sharding of the model's modules.

The model's own code does not refer to parallelism; this module decides which of its parts are sharded, recomputed or
compiled.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from lit_illada.model.initial import fill
from lit_illada.model.transformer import Transformer
from lit_illada.training.checkpointing.portable import PortableState
from lit_illada.training.config.parallel import ParallelConfig
from lit_illada.training.distributed.activation_checkpointing import checkpoint_activations


class ShardedStrategy(PortableState, ModelParallelStrategy):
    """Lightning's strategy for FSDP2 and tensor parallelism, over the mesh (replicate, shard, tensor).

    In addition to Lightning's it supports hybrid sharding (several copies of a sharded model), reduces gradients once
    per optimizer step, and writes checkpoints that other strategies can load.
    """

    def __init__(self, config: ParallelConfig, timeout: timedelta) -> None:
        super().__init__(timeout=timeout)
        self._config = config
        self.data_mesh: DeviceMesh | None = None

    def setup_environment(self) -> None:
        self._setup_distributed()
        assert self.lightning_module is not None
        if self._device_mesh is None:
            shape = self._config.mesh_shape(self.world_size)
            names = ("replicate", "shard", "tensor")
            self._device_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)
            self.data_mesh = self._device_mesh["replicate", "shard"]._flatten("data")
        self.lightning_module._device_mesh = self._device_mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        assert self.data_mesh is not None
        return {"num_replicas": self.data_mesh.size(), "rank": self.data_mesh.get_local_rank()}

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Postpone gradient reduction. Lightning enters it for every micro-batch of a step but the last one."""
        assert self.lightning_module is not None
        model = self.lightning_module.model
        assert isinstance(model, FSDPModule)
        # under hybrid sharding the reduction over copies can wait even if the one within a copy cannot
        postpone = (
            model.set_requires_all_reduce if self._config.reduce_every_micro_batch else model.set_requires_gradient_sync
        )
        postpone(False)
        try:
            yield
        finally:
            postpone(True)


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Hold the whole weights of an FSDP model on every rank within the block, where forward passes communicate nothing.

    Ranks may then run different numbers of passes, as sampling does. Collective on entry and exit.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)


def num_data_ranks(trainer: pl.Trainer) -> int:
    """Number of ranks that process different rows: all ranks, divided by tensor_parallel."""
    strategy = trainer.strategy
    assert isinstance(trainer.world_size, int)
    return (
        strategy.distributed_sampler_kwargs["num_replicas"]
        if isinstance(strategy, ShardedStrategy)
        else trainer.world_size
    )


def prepare_block(block: nn.Module, config: ParallelConfig, *, is_compiled: bool) -> None:
    """Apply activation checkpointing to a block, then compile it if `is_compiled`."""
    checkpoint_activations(block, config.activation_checkpointing)
    if is_compiled:
        block.compile()


def shard(
    model: Transformer,
    mesh: DeviceMesh,
    config: ParallelConfig,
    *,
    param_dtype: torch.dtype,
    weights: Mapping[str, Tensor] | None,
    is_compiled: bool,
) -> None:
    """Shard a model on the meta device over the mesh, and load its weights.

    Blocks are materialised and sharded one at a time, so that a device never holds more than one whole block; then the
    embedding, the last norm and the head together. Weights, gradients and optimizer states are float32.

    Args:
        model: on the meta device; modified in place.
        mesh: dimensions (replicate, shard, tensor).
        config: parallelism and activation checkpointing.
        param_dtype: data type in which blocks are gathered and computed.
        weights: by parameter name; None: a checkpoint will be loaded later.
        is_compiled: compile the blocks.
    """
    replicate, _, tensor = mesh.shape
    device = torch.device(mesh.device_type)
    policy = MixedPrecisionPolicy(
        param_dtype=None if param_dtype is torch.float32 else param_dtype,
        reduce_dtype=getattr(torch, config.reduce_dtype),
    )
    data_mesh = mesh["replicate", "shard"] if replicate > 1 else mesh["shard"]
    for name, block in model.named_modules():
        if not name.startswith("model.layers.") or name.count(".") != 2:
            continue
        _materialise(block, weights, f"{name}.", device)
        if tensor > 1:
            # every rank has loaded the same values, so no broadcast is needed
            parallelize_module(block, mesh["tensor"], _tensor_plan(), src_data_rank=None)
        prepare_block(block, config, is_compiled=is_compiled)
        fully_shard(block, mesh=data_mesh, mp_policy=policy)
    for name, module in model.named_modules():
        if name in ("model.embed_tokens", "model.norm", "lm_head"):
            _materialise(module, weights, f"{name}.", device)
    fully_shard(model, mesh=data_mesh, mp_policy=policy)


def _tensor_plan() -> dict[str, ParallelStyle]:
    """Megatron's plan (arXiv 1909.08053): q, k, v, gate and up projections by columns, o and down by rows."""
    replicated = PrepareModuleInput(
        input_layouts=(Replicate(), None, None, None), desired_input_layouts=(Replicate(), None, None, None)
    )
    by_columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    return {
        # the gradient of the common input is then reduced once, not once per projection
        "self_attn": replicated,
        "mlp": PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(Replicate(),)),
        **{name: ColwiseParallel() for name in by_columns},
        **{name: RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")},
    }


def _materialise(module: nn.Module, weights: Mapping[str, Tensor] | None, prefix: str, device: torch.device) -> None:
    module.to_empty(device=device)
    if weights is not None:
        fill(module, weights, prefix)

"""How is a run spread over devices? Which strategy, over which mesh, and what becomes of the model's blocks.

The model knows nothing of it: here alone stands which of its parts are cut, recomputed or compiled.
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
    """Lightning's strategy for FSDP2 and tensor parallelism, over a mesh with names of its own: replicate × shard ×
    tensor.

    Beyond Lightning's: copies of a sharded model (hybrid sharding), gradients summed once an accumulated step, and
    checkpoints that another strategy can read.
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
        """Lightning enters it for every micro-batch but a step's last; its own knows DDP alone."""
        assert self.lightning_module is not None
        model = self.lightning_module.model
        assert isinstance(model, FSDPModule)
        # in hybrid sharding the sum over the copies can wait even where the sum within one cannot
        postpone = (
            model.set_requires_all_reduce if self._config.reduce_every_micro_batch else model.set_requires_gradient_sync
        )
        postpone(False)
        try:
            yield
        finally:
            postpone(True)


def num_data_ranks(trainer: pl.Trainer) -> int:
    """Ranks with rows of their own: all of them, but for those that tensor parallelism gives the same."""
    strategy = trainer.strategy
    assert isinstance(trainer.world_size, int)
    return (
        strategy.distributed_sampler_kwargs["num_replicas"]
        if isinstance(strategy, ShardedStrategy)
        else trainer.world_size
    )


def prepare_block(block: nn.Module, config: ParallelConfig, *, is_compiled: bool) -> None:
    """What a block does otherwise on any number of devices: it recomputes its activations, and is compiled."""
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
    """Spread a model on the meta device over the mesh, and give it its weights.

    One block at a time is whole on a device, then cut; at the end the embedding, the last norm and the head together.
    Weights, gradients and optimizer are float32; blocks are gathered, and multiply, in `param_dtype`.
    weights: None leaves them to a checkpoint.
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
            # every rank has the same values: it takes its part of its own
            parallelize_module(block, mesh["tensor"], _tensor_plan(), src_data_rank=None)
        prepare_block(block, config, is_compiled=is_compiled)
        fully_shard(block, mesh=data_mesh, mp_policy=policy)
    for name, module in model.named_modules():
        if name in ("model.embed_tokens", "model.norm", "lm_head"):
            _materialise(module, weights, f"{name}.", device)
    fully_shard(model, mesh=data_mesh, mp_policy=policy)


def _tensor_plan() -> dict[str, ParallelStyle]:
    """Queries, keys, values, gate and up by columns, that is by heads; what follows them by rows (arXiv 1909.08053)."""
    whole = PrepareModuleInput(
        input_layouts=(Replicate(), None, None, None), desired_input_layouts=(Replicate(), None, None, None)
    )
    by_columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    return {
        # the gradient of what the columns share is then summed once, not for each of them
        "self_attn": whole,
        "mlp": PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(Replicate(),)),
        **{name: ColwiseParallel() for name in by_columns},
        **{name: RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")},
    }


def _materialise(module: nn.Module, weights: Mapping[str, Tensor] | None, prefix: str, device: torch.device) -> None:
    module.to_empty(device=device)
    if weights is not None:
        fill(module, weights, prefix)

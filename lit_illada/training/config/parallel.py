"""Config of data, sharded and tensor parallelism; `training/distributed/parallel.py` implements it."""

from dataclasses import dataclass
from enum import StrEnum

from lit_illada.errors import UserError, require
from lit_illada.model.config import ModelConfig


class Strategy(StrEnum):
    """Parallelism over several devices."""

    auto = "auto"
    """fsdp if shard_size or tensor_parallel is set, else ddp on several devices; nothing on one."""
    ddp = "ddp"
    """Every device holds the whole model."""
    fsdp = "fsdp"
    """Weights, gradients and optimizer states are sharded block by block (ZeRO-3, arXiv 1910.02054)."""


class ReduceDtype(StrEnum):
    """Data type in which gradients are summed over devices."""

    float32 = "float32"
    """Exact to rounding."""
    bfloat16 = "bfloat16"
    """Half the communication, less exact."""


class ActivationCheckpointing(StrEnum):
    """Which activations of a block are saved for the backward pass; the others are recomputed in it."""

    none = "none"
    """All are saved."""
    selective = "selective"
    """The block's input and its expensive operations, linear layers and attention kernels, are saved; the outputs of
    the kernels flex and flash4 are recomputed."""
    full = "full"
    """Only the block's input is saved."""


@dataclass(frozen=True)
class ParallelConfig:
    """Parallelism over devices, and activation checkpointing."""

    strategy: Strategy = Strategy.auto
    """Data parallel (ddp) or sharded (fsdp)."""
    shard_size: int | None = None
    """Devices over which one copy of the model is sharded; None: all devices, that is a single copy."""
    tensor_parallel: int = 1
    """Devices that split each block's heads and MLP between them; they process the same rows."""
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none
    """Activations that are saved rather than recomputed."""
    reduce_dtype: ReduceDtype = ReduceDtype.float32
    """Data type of the gradient sum under fsdp; ddp always uses float32."""
    reduce_every_micro_batch: bool = False
    """Sum gradients after each micro-batch, so that no device holds unsharded ones; false: once per step."""

    def __post_init__(self) -> None:
        for name in ("shard_size", "tensor_parallel"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"trainer.parallel.{name}", value, "1 or more")
        if self.strategy is Strategy.ddp and (self.shard_size is not None or self.tensor_parallel > 1):
            name = "shard_size" if self.shard_size is not None else "tensor_parallel"
            raise UserError(
                f"trainer.parallel.{name}={getattr(self, name)} shards the model, and strategy=ddp holds it whole on "
                "every device: set trainer.parallel.strategy=fsdp"
            )

    def resolve(self, world_size: int) -> Strategy | None:
        """The strategy on `world_size` devices; None for a single device without a strategy."""
        if self.strategy is not Strategy.auto:
            return self.strategy if world_size > 1 or self.strategy is Strategy.fsdp else None
        if self.shard_size is not None or self.tensor_parallel > 1:
            return Strategy.fsdp
        return Strategy.ddp if world_size > 1 else None

    def mesh_shape(self, world_size: int) -> tuple[int, int, int]:
        """Sizes of the mesh dimensions (replicate, shard, tensor): copies, data ranks per copy, ranks per data rank."""
        num_data = world_size // self.tensor_parallel
        shard = self.shard_size or num_data
        return num_data // shard, shard, self.tensor_parallel

    def check_devices(self, world_size: int) -> None:
        """Raise UserError if shard_size or tensor_parallel does not divide the number of devices."""
        if world_size % self.tensor_parallel:
            raise UserError(
                f"trainer.parallel.tensor_parallel={self.tensor_parallel} does not divide devices × num_nodes = "
                f"{world_size}"
            )
        num_data = world_size // self.tensor_parallel
        if self.shard_size is not None and num_data % self.shard_size:
            shared = " / tensor_parallel" if self.tensor_parallel > 1 else ""
            raise UserError(
                f"trainer.parallel.shard_size={self.shard_size} does not divide devices × num_nodes{shared} = "
                f"{num_data}"
            )

    def check_model(self, model: ModelConfig, world_size: int) -> None:
        """Raise UserError for a model whose heads or MLP the mesh cannot divide evenly."""
        if self.tensor_parallel == 1:
            return
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
            if getattr(model, name) % self.tensor_parallel:
                raise UserError(
                    f"trainer.parallel.tensor_parallel={self.tensor_parallel} does not divide "
                    f"model.{name}={getattr(model, name)}"
                )
        # torch gathers rows incorrectly that are sharded twice and unevenly (pytorch issue 168134)
        parts = self.tensor_parallel * self.mesh_shape(world_size)[1]
        widths = {
            "hidden_size": model.hidden_size,
            "num_key_value_heads × head_dim": model.num_key_value_heads * model.head_dim,
            "intermediate_size": model.intermediate_size,
        }
        for name, width in widths.items():
            if width % parts:
                raise UserError(
                    f"model.{name} is {width}, which tensor_parallel × the devices of a shard = {parts} does not "
                    f"divide: set it to {parts * (width // parts + 1)}, or a smaller trainer.parallel.shard_size"
                )

"""Config of how a run is spread over devices; `training/parallel.py` implements it."""

from dataclasses import dataclass
from enum import StrEnum

from lit_illada.errors import UserError
from lit_illada.model.config import ModelConfig


class Strategy(StrEnum):
    """How devices share a run. auto: one device alone, several by ddp, or by fsdp where a size below asks for it."""

    auto = "auto"
    ddp = "ddp"  # every device holds the whole model
    fsdp = "fsdp"  # weights, gradients and optimizer are cut (ZeRO-3, arXiv 1910.02054), a block at a time together


class ReduceDtype(StrEnum):
    """What gradients are summed in over devices."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class ActivationCheckpointing(StrEnum):
    """none: all are kept. full: a block's input alone.

    selective: also the outputs of its linear layers and of attention, the dear ones; norms, rotations and the MLP's
    product are computed again. Of `matmul` attention only the linear layers: its scores are as many as the row is
    long; FlashAttention 4's output, whose function torch knows no operator of, is computed again too. As in torchtitan,
    which keeps every second matrix product; here all are.
    """

    none = "none"
    selective = "selective"
    full = "full"


@dataclass(frozen=True)
class ParallelConfig:
    """shard_size: devices that hold one model between them; None is all of them, fewer are copies of such groups.

    tensor_parallel: devices that share every block's heads and MLP; they see the same rows, and each computes the whole
    LM head on them.
    reduce_every_micro_batch: sum gradients after every micro-batch, so that no device keeps whole ones while it
    accumulates; else once a step. reduce_dtype: under fsdp; ddp sums what it has, float32.
    """

    strategy: Strategy = Strategy.auto
    shard_size: int | None = None
    tensor_parallel: int = 1
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none
    reduce_dtype: ReduceDtype = ReduceDtype.float32
    reduce_every_micro_batch: bool = False

    def __post_init__(self) -> None:
        for name in ("shard_size", "tensor_parallel"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"trainer.parallel.{name} must be 1 or more; got {value}")
        if self.strategy is Strategy.ddp and (self.shard_size is not None or self.tensor_parallel > 1):
            name = "shard_size" if self.shard_size is not None else "tensor_parallel"
            raise UserError(
                f"trainer.parallel.{name}={getattr(self, name)} cuts the model, and strategy=ddp keeps it whole on "
                "every device: set trainer.parallel.strategy=fsdp"
            )

    def resolve(self, world_size: int) -> Strategy | None:
        """What will run on so many devices; None for one device alone."""
        if self.strategy is not Strategy.auto:
            return self.strategy if world_size > 1 or self.strategy is Strategy.fsdp else None
        if self.shard_size is not None or self.tensor_parallel > 1:
            return Strategy.fsdp
        return Strategy.ddp if world_size > 1 else None

    def mesh_shape(self, world_size: int) -> tuple[int, int, int]:
        """(copies of the model, devices of a copy that see rows of their own, devices that share those rows)."""
        num_data = world_size // self.tensor_parallel
        shard = self.shard_size or num_data
        return num_data // shard, shard, self.tensor_parallel

    def check_devices(self, world_size: int) -> None:
        """Raises UserError for sizes that do not divide the devices."""
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
        """Raises UserError for a model whose heads or MLP cannot be shared out."""
        if self.tensor_parallel == 1:
            return
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
            if getattr(model, name) % self.tensor_parallel:
                raise UserError(
                    f"trainer.parallel.tensor_parallel={self.tensor_parallel} does not divide "
                    f"model.{name}={getattr(model, name)}"
                )
        # torch gathers rows wrongly that are cut twice and unevenly (pytorch issue 168134)
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

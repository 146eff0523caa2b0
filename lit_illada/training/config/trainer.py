"""Config of devices, precision, batch size and length of a run; `training/trainer.py` builds the trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from lit_illada.errors import UserError
from lit_illada.runtime.lazy import torch
from lit_illada.schema import choice
from lit_illada.training.config.divergence import ON_DIVERGENCE, Rollback, SpikeConfig, Stop
from lit_illada.training.config.parallel import ParallelConfig, Strategy


class Accelerator(StrEnum):
    """auto: a CUDA GPU where there is one, else the CPU."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"

    def resolve(self) -> Accelerator:
        """The accelerator that will run. Raises UserError when a GPU is asked for where there is none."""
        if self is Accelerator.gpu and not torch.cuda.is_available():
            raise UserError("accelerator=gpu, but torch sees no CUDA device here; use accelerator=cpu or auto")
        if self is not Accelerator.auto:
            return self
        return Accelerator.gpu if torch.cuda.is_available() else Accelerator.cpu

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self is Accelerator.gpu else "cpu")


class Precision(StrEnum):
    """Lightning's names. auto: bf16-mixed where the hardware multiplies bfloat16 (CUDA; CPUs with AMX or AVX512-BF16),
    else 32-true.
    """

    auto = "auto"
    float32 = "32-true"
    bf16_mixed = "bf16-mixed"

    def resolve(self, accelerator: Accelerator) -> Precision:
        if self is not Precision.auto:
            return self
        has_bf16 = accelerator is Accelerator.gpu or _cpu_multiplies_bf16()
        return Precision.bf16_mixed if has_bf16 else Precision.float32

    @property
    def dtype(self) -> torch.dtype:
        """What matrices are multiplied in; of a resolved precision."""
        assert self is not Precision.auto
        return torch.bfloat16 if self is Precision.bf16_mixed else torch.float32


@dataclass(frozen=True)
class TrainerConfig:
    """How long, how large, how often.

    batch_rows: rows of an optimizer step, over all devices. micro_batch_rows: rows a device takes at once; what is
    left of batch_rows is accumulated. Intervals are in optimizer steps. max_time_s: seconds of training, without its
    validations, after which the run is finished wherever it is; the learning rate goes by max_steps all the same, so
    that a decay may not have come to its end. keep_checkpoints: how many of the newest stay (with
    on_divergence=rollback of those of checkpoint_every_steps, and the last besides), keep_every_steps: the multiples
    that stay besides, keep_best: how many with the lowest val/nll_bound do. checkpoint_async: training goes
    on while a checkpoint is written; it takes a copy of the state in the machine's memory. timeout_s: how long the
    ranks wait for one that does not answer; one whose process is gone is seen within seconds. on_divergence: what is
    done after max_nonfinite_steps in a row, or a loss spike that does not end; spikes: what a loss spike is.
    """

    accelerator: Accelerator = Accelerator.auto
    devices: int = 1
    num_nodes: int = 1
    precision: Precision = Precision.auto
    compile: bool = False
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    max_steps: int = 1000
    max_time_s: float | None = None
    batch_rows: int = 32
    micro_batch_rows: int = 32
    ema_decay: float | None = None
    log_every_steps: int = 10
    val_every_steps: int = 100
    val_rows: int = 64
    val_draws: int = 2
    checkpoint_every_steps: int = 100
    keep_checkpoints: int = 2
    keep_every_steps: int | None = None
    keep_best: int = 0
    checkpoint_async: bool = True
    timeout_s: float = 1800.0
    max_nonfinite_steps: int = 5
    spikes: SpikeConfig = field(default_factory=SpikeConfig)
    on_divergence: Stop | Rollback = choice(ON_DIVERGENCE, "stop")

    def __post_init__(self) -> None:
        positive = [
            "devices",
            "num_nodes",
            "max_steps",
            "batch_rows",
            "micro_batch_rows",
            "log_every_steps",
            "val_every_steps",
            "val_rows",
            "val_draws",
            "checkpoint_every_steps",
            "keep_checkpoints",
            "max_nonfinite_steps",
        ]
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"trainer.{name} must be 1 or more; got {getattr(self, name)}")
        if self.val_rows < 2:
            raise UserError(f"trainer.val_rows must be 2 or more, for a standard error; got {self.val_rows}")
        if self.keep_best < 0:
            raise UserError(f"trainer.keep_best must be 0 or more; got {self.keep_best}")
        if self.keep_every_steps is not None and (
            self.keep_every_steps < 1 or self.keep_every_steps % self.checkpoint_every_steps
        ):
            raise UserError(
                f"trainer.keep_every_steps={self.keep_every_steps} is no multiple of "
                f"checkpoint_every_steps={self.checkpoint_every_steps}, or null for none"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"trainer.ema_decay must lie in (0, 1), or be null for none; got {self.ema_decay}")
        if self.max_time_s is not None and not self.max_time_s > 0:
            raise UserError(f"trainer.max_time_s must be above 0, or null for no limit; got {self.max_time_s}")
        self.parallel.check_devices(self.world_size)
        if not self.timeout_s > 0:
            raise UserError(f"trainer.timeout_s must be above 0; got {self.timeout_s}")
        self._check_divergence()
        at_once = self.micro_batch_rows * self.num_data_ranks
        if self.batch_rows % at_once:
            tensor = self.parallel.tensor_parallel
            raise UserError(
                f"trainer.batch_rows={self.batch_rows} is no multiple of micro_batch_rows × devices × num_nodes"
                f"{' / tensor_parallel' if tensor > 1 else ''} = {self.micro_batch_rows} × {self.devices} × "
                f"{self.num_nodes}{f' / {tensor}' if tensor > 1 else ''} = {at_once}"
            )
        if self.ema_decay is not None and self.is_sharded:
            raise UserError(
                f"trainer.ema_decay={self.ema_decay} averages whole weights, and trainer.parallel cuts them: set "
                "trainer.ema_decay=null, or trainer.parallel.strategy=ddp"
            )

    def _check_divergence(self) -> None:
        response, window = self.on_divergence, self.spikes.window
        most = response.max_spike_steps
        if most is not None and most >= window:
            raise UserError(
                f"trainer.on_divergence.max_spike_steps={most} is never reached: a spike of trainer.spikes.window="
                f"{window} steps is taken for a new level; it must be below that, or null for none"
            )
        if not isinstance(response, Rollback):
            return
        unseen = max(self.max_nonfinite_steps, most or 0)
        # the newest checkpoint may be of the step before the divergence is seen
        needed = 1 + math.ceil((unseen + response.steps_back - 2) / self.checkpoint_every_steps)
        if self.keep_checkpoints < needed:
            raise UserError(
                f"trainer.on_divergence=rollback needs trainer.keep_checkpoints of {needed} or more: with "
                f"checkpoint_every_steps={self.checkpoint_every_steps} the newest may be of after the divergence began "
                f"(it is seen up to {unseen} steps later, and the way back is {response.steps_back} steps more); got "
                f"{self.keep_checkpoints}"
            )

    @property
    def world_size(self) -> int:
        return self.devices * self.num_nodes

    @property
    def num_data_ranks(self) -> int:
        """Devices with rows of their own."""
        return self.world_size // self.parallel.tensor_parallel

    @property
    def is_sharded(self) -> bool:
        """Whether no device holds the whole model."""
        return self.parallel.resolve(self.world_size) is Strategy.fsdp

    def hardware(self) -> tuple[Accelerator, Precision]:
        """What will run. Raises UserError where the devices asked for are absent."""
        accelerator = self.accelerator.resolve()
        if accelerator is Accelerator.gpu and self.devices > torch.cuda.device_count():
            raise UserError(f"trainer.devices={self.devices}, but torch sees {torch.cuda.device_count()} CUDA devices")
        return accelerator, self.precision.resolve(accelerator)

    @property
    def accumulation(self) -> int:
        """Micro-batches of an optimizer step on one device."""
        return self.batch_rows // (self.micro_batch_rows * self.num_data_ranks)


def _cpu_multiplies_bf16() -> bool:
    # private names, hence the default: a torch that renames them runs in float32, and the log says so
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)

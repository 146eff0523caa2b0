"""Config of devices, precision, batch size and length of a run; `training/trainer.py` builds Lightning's Trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path

from lit_illada.errors import UserError, require
from lit_illada.runtime.lazy import torch
from lit_illada.schema import choice
from lit_illada.training.config.divergence import ON_DIVERGENCE, Rollback, SpikeConfig, Stop
from lit_illada.training.config.parallel import ParallelConfig, Strategy


class Accelerator(StrEnum):
    """Kind of device."""

    auto = "auto"
    """A CUDA GPU where there is one, else the CPU."""
    cpu = "cpu"
    """The CPU."""
    gpu = "gpu"
    """A CUDA GPU."""

    def resolve(self) -> Accelerator:
        """The accelerator that will be used. Raises UserError for gpu if torch sees no CUDA device."""
        if self is Accelerator.gpu and not torch.cuda.is_available():
            raise UserError("accelerator=gpu, but torch sees no CUDA device here; use accelerator=cpu or auto")
        if self is not Accelerator.auto:
            return self
        return Accelerator.gpu if torch.cuda.is_available() else Accelerator.cpu

    @property
    def device(self) -> torch.device:
        """The torch device; `auto` must be resolved first."""
        return torch.device("cuda" if self is Accelerator.gpu else "cpu")


class Precision(StrEnum):
    """Precision of matrix multiplication, by Lightning's names."""

    auto = "auto"
    """bf16-mixed where the hardware multiplies bfloat16 faster than float32 (CUDA; CPUs with AMX, and AMD's with
    AVX512-BF16), else 32-true. A run records the choice in its config."""
    float32 = "32-true"
    """float32 throughout."""
    bf16_mixed = "bf16-mixed"
    """Matrix products in bfloat16; weights, gradients and optimizer states in float32."""

    def resolve(self, accelerator: Accelerator) -> Precision:
        """The precision that will be used: for `auto`, bf16-mixed where that is faster than float32."""
        if self is not Precision.auto:
            return self
        is_faster = accelerator is Accelerator.gpu or _is_bf16_faster_on_cpu()
        return Precision.bf16_mixed if is_faster else Precision.float32

    @property
    def dtype(self) -> torch.dtype:
        """Data type of matrix multiplication, for a resolved precision."""
        assert self is not Precision.auto
        return torch.bfloat16 if self is Precision.bf16_mixed else torch.float32

    @property
    def dtype_of_loaded(self) -> torch.dtype | None:
        """Data type of weights that are loaded for evaluation; None: as they are stored, such as in bfloat16."""
        return None if self is Precision.bf16_mixed else self.dtype


_POSITIVE = (
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
)


@dataclass(frozen=True)
class TrainerConfig:
    """Devices, precision, batch size, length and intervals of a run. Intervals are in optimizer steps."""

    accelerator: Accelerator = Accelerator.auto
    """Kind of device to train on."""
    devices: int = 1
    """Devices per node; one process each."""
    num_nodes: int = 1
    """Machines."""
    precision: Precision = Precision.auto
    """Data type of matrix multiplication; weights and optimizer states are float32."""
    compile: bool | None = False
    """Compile the model's blocks with torch.compile; None: if a compiler is installed and the run is long enough."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Parallelism over devices, and activation checkpointing."""
    max_steps: int = 1000
    """Optimizer steps of the run, and the length of the learning-rate schedule."""
    max_time_s: float | None = None
    """Seconds of training, without validation, after which the run is finished early; None: no limit."""
    batch_rows: int = 32
    """Rows per optimizer step, over all devices."""
    micro_batch_rows: int = 32
    """Rows per forward pass of a device; gradients are accumulated up to batch_rows."""
    ema_decay: float | None = None
    """Decay per step of an exponential moving average of the weights, used for validation; None: no average."""
    log_every_steps: int = 10
    """Interval of training curves."""
    val_every_steps: int = 100
    """Interval of validation."""
    val_rows: int = 64
    """Validation rows; at least 2, for a standard error."""
    val_draws: int = 2
    """Random maskings of each validation row."""
    checkpoint_every_steps: int = 100
    """Interval of checkpoints; the last step is saved in any case."""
    keep_checkpoints: int = 2
    """Newest checkpoints to retain; with on_divergence=rollback those of checkpoint_every_steps are counted."""
    keep_every_steps: int | None = None
    """Also retain checkpoints at multiples of this interval; None: none."""
    keep_best: int = 0
    """Also retain this many checkpoints with the lowest val/nll_bound, in alignment val/error; `checkpoints/best` links
    to the best."""
    checkpoint_async: bool = True
    """Write checkpoints in the background, from a copy of the state in host memory."""
    timeout_s: float = 1800.0
    """Seconds that ranks wait for one that does not respond; a rank whose process died is noticed within seconds."""
    max_nonfinite_steps: int = 5
    """Consecutive steps with a non-finite gradient that count as a divergence; each of them is skipped."""
    spikes: SpikeConfig = field(default_factory=SpikeConfig)
    """Definition of a loss spike."""
    on_divergence: Stop | Rollback = choice(ON_DIVERGENCE, "stop")
    """Response to a divergence."""

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            require(getattr(self, name) >= 1, f"trainer.{name}", getattr(self, name), "1 or more")
        self._check_intervals()
        self.parallel.check_devices(self.world_size)
        require(0 < self.timeout_s < math.inf, "trainer.timeout_s", self.timeout_s, "above 0 and finite")
        self._check_divergence()
        if self.ema_decay is not None and self.is_sharded:
            raise UserError(
                f"trainer.ema_decay={self.ema_decay} averages whole weights, and trainer.parallel shards them: set "
                "trainer.ema_decay=null, or trainer.parallel.strategy=ddp"
            )

    def _check_intervals(self) -> None:
        require(self.val_rows >= 2, "trainer.val_rows", self.val_rows, "2 or more, for a standard error")
        require(self.keep_best >= 0, "trainer.keep_best", self.keep_best, "0 or more")
        if self.keep_every_steps is not None and (
            self.keep_every_steps < 1 or self.keep_every_steps % self.checkpoint_every_steps
        ):
            raise UserError(
                f"trainer.keep_every_steps={self.keep_every_steps} is no multiple of "
                f"checkpoint_every_steps={self.checkpoint_every_steps}, or null for none"
            )
        is_average = self.ema_decay is None or 0 < self.ema_decay < 1
        require(is_average, "trainer.ema_decay", self.ema_decay, "above 0 and below 1, or null for no average")
        is_limit = self.max_time_s is None or self.max_time_s > 0
        require(is_limit, "trainer.max_time_s", self.max_time_s, "above 0, or null for no limit")

    def check_batch(self) -> None:
        """Raise UserError unless the devices' micro-batches divide an optimizer step."""
        at_once = self.micro_batch_rows * self.num_data_ranks
        if self.batch_rows % at_once:
            tensor = self.parallel.tensor_parallel
            raise UserError(
                f"trainer.batch_rows={self.batch_rows} is no multiple of micro_batch_rows × devices × num_nodes"
                f"{' / tensor_parallel' if tensor > 1 else ''} = {self.micro_batch_rows} × {self.devices} × "
                f"{self.num_nodes}{f' / {tensor}' if tensor > 1 else ''} = {at_once}"
            )

    def _check_divergence(self) -> None:
        response, window = self.on_divergence, self.spikes.window
        most = response.max_spike_steps
        if most is not None and most >= window:
            raise UserError(
                f"trainer.on_divergence.max_spike_steps={most} is never reached: a spike of trainer.spikes.window="
                f"{window} steps counts as a new level; set it to less than {window}, or null for none"
            )
        if not isinstance(response, Rollback):
            return
        unseen = max(self.max_nonfinite_steps, most or 0)
        # the newest checkpoint may be one step older than the detection of the divergence
        needed = 1 + math.ceil((unseen + response.steps_back - 2) / self.checkpoint_every_steps)
        if self.keep_checkpoints < needed:
            raise UserError(
                f"trainer.on_divergence=rollback needs trainer.keep_checkpoints of {needed} or more: with "
                f"checkpoint_every_steps={self.checkpoint_every_steps} the newest ones may have been saved too late (a "
                f"divergence is detected up to {unseen} steps after it began, and steps_back={response.steps_back} "
                f"come on top); got {self.keep_checkpoints}"
            )

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.devices * self.num_nodes

    @property
    def num_data_ranks(self) -> int:
        """Devices that process different rows: all, divided by tensor_parallel."""
        return self.world_size // self.parallel.tensor_parallel

    @property
    def is_sharded(self) -> bool:
        """Whether the model is sharded over the devices."""
        return self.parallel.resolve(self.world_size) is Strategy.fsdp

    def hardware(self) -> tuple[Accelerator, Precision]:
        """The resolved accelerator and precision. Raises UserError for a device that is missing."""
        accelerator = self.accelerator.resolve()
        if accelerator is Accelerator.gpu and self.devices > torch.cuda.device_count():
            raise UserError(f"trainer.devices={self.devices}, but torch sees {torch.cuda.device_count()} CUDA devices")
        return accelerator, self.precision.resolve(accelerator)

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimizer step on one device."""
        return self.batch_rows // (self.micro_batch_rows * self.num_data_ranks)


@cache
def _is_bf16_faster_on_cpu() -> bool:
    """Whether the processor has AMX, or is AMD's with AVX512-BF16.

    Intel's AVX512-BF16 without AMX multiplies square matrices at 0.56 times the speed of float32, and a training step
    takes 1.3 (pico) to 1.4 (nano) times as long, measured on a Sapphire Rapids whose AMX the hypervisor hides.
    """
    # private functions of torch: if a release renames them, the run falls back to float32, which the log shows
    has_amx, has_avx = (
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    return has_amx or (has_avx and not _is_intel())


def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return True

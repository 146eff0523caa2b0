"""The estimate of a training run: its figures, the table of them, and why a device has too little memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

from lit_illada.config import AlignConfig, RunConfig
from lit_illada.cost.memory import StepMemory
from lit_illada.runtime.console import Console
from lit_illada.runtime.durations import duration
from lit_illada.training.config.parallel import ActivationCheckpointing, Strategy


@dataclass(frozen=True)
class Estimate:
    """Memory, time and disk space of a training run."""

    parameters: dict[str, int]
    """Number of parameters by part of the model."""
    num_adapters: int | None
    """Adapter parameters, the only trained ones; None: all parameters are trained."""
    memory: StepMemory
    """Of one device, bytes."""
    recomputed: int
    """Activations of one device if every layer were recomputed in the backward pass, bytes."""
    device_bytes: float | None
    """Memory of the device; None on a CPU."""
    flops_per_token: float
    """Training FLOPs."""
    peak_flops_per_s: float
    """Of one device."""
    origin: str
    """Source of `peak_flops_per_s`."""
    mfu: float
    """Assumed fraction of the peak, 0 to 1."""
    num_devices: int
    tokens: float
    """Training tokens of the run."""
    batch_tokens: int
    """Tokens per optimizer step."""
    disk_bytes: int
    """Size of all retained checkpoints."""
    problems: list[str]
    """Reasons why the run would fail, with the fix, and settings that the estimate ignores."""
    phases: dict[str, tuple[int, float]]
    """Of an alignment: passes per completion and FLOPs per optimizer step by phase, for completions that fill their
    canvas; empty for other runs."""
    rollout: int
    """Memory of generation in an alignment beside the weights, bytes."""

    @property
    def tokens_per_s(self) -> float:
        """Throughput of all devices."""
        return self.peak_flops_per_s * self.mfu * self.num_devices / self.flops_per_token

    @property
    def days(self) -> float:
        """Duration of the run."""
        return self.tokens / self.tokens_per_s / 86400


def print_estimate(estimate: Estimate, console: Console) -> None:
    """Prints an estimate as a table, then its problems."""
    memory = estimate.memory
    total = sum(estimate.parameters.values()) + (estimate.num_adapters or 0)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for part, count in estimate.parameters.items():
        table.add_row("parameters", part.replace("_", " "), f"{count:,}")
    if estimate.num_adapters is not None:
        table.add_row("", "adapters (the only trained ones)", f"{estimate.num_adapters:,}")
    table.add_row("", "total", f"{total:,}", end_section=True)
    for part, num_bytes in {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer state": memory.optimizer,
        "moving average": memory.moving_average,
        "reference": memory.reference,
        "copies of weights for matrix products": memory.casts,
        "activations": memory.activations,
        "recomputed layer": memory.recomputed,
        "LM head and loss": memory.head,
        "rollout": estimate.rollout,
        "peak": max(memory.peak, memory.state + memory.casts + estimate.rollout),
    }.items():
        if num_bytes:
            table.add_row("memory per device", part, _gigabytes(num_bytes))
    table.add_row("", "activations with full recomputation", _gigabytes(estimate.recomputed))
    step_s = estimate.batch_tokens / estimate.tokens_per_s
    total_flops = sum(flops for _, flops in estimate.phases.values())
    for phase, (passes, flops) in estimate.phases.items():
        seconds = f"{step_s * flops / total_flops:.2g} s per optimizer step"
        table.add_row(f"{phase}", f"{passes} passes per completion and rollout", seconds)
    table.add_row("compute", "FLOPs per token", f"{estimate.flops_per_token:.3g}")
    table.add_row("", "FLOPs of the run", f"{estimate.flops_per_token * estimate.tokens:.3g}")
    peak = f"{estimate.peak_flops_per_s:.3g} FLOP/s per device, {estimate.origin}; {estimate.mfu:.0%} of it assumed"
    table.add_row("time", "speed", peak)
    table.add_row("", "tokens/s", f"{estimate.tokens_per_s:,.0f} on {estimate.num_devices}")
    steps = math.ceil(estimate.tokens / estimate.batch_tokens)
    table.add_row("", f"{estimate.tokens:.3g} tokens", f"{duration(86_400 * estimate.days)} ({steps:,} steps)")
    table.add_row("disk", "retained checkpoints", _gigabytes(estimate.disk_bytes))
    console.print(table, highlight=False)
    for problem in estimate.problems:
        console.print(f"! {problem}", highlight=False, soft_wrap=True)


def memory_problems(config: RunConfig, memory: StepMemory, device_bytes: float | None, rollout: int) -> Iterator[str]:
    """Why the run does not fit in the memory of a device, with the fix."""
    trainer = config.trainer
    parallel = trainer.parallel
    if device_bytes is not None and memory.state + memory.casts + rollout > 0.95 * device_bytes > memory.peak:
        yield (
            f"a rollout takes {_gigabytes(memory.state + memory.casts + rollout)}, more than a device's "
            f"{_gigabytes(device_bytes)}: lower rollout_rows"
        )
    if device_bytes is None or memory.peak <= 0.95 * device_bytes:
        return
    state = memory.state + memory.gradients + memory.casts
    if state > 0.95 * device_bytes:
        is_sharded = parallel.resolve(trainer.world_size) is Strategy.fsdp
        remedy = (
            "use more devices or a larger trainer.parallel.shard_size, so that each holds less"
            if is_sharded
            else "every device holds all of them; trainer.parallel.strategy=fsdp shards them"
        )
        yield (
            f"weights, gradients and optimizer take {_gigabytes(state)} of a device's {_gigabytes(device_bytes)}: "
            f"{remedy}"
        )
    else:
        lower = f"lower trainer.micro_batch_rows={trainer.micro_batch_rows}"
        if isinstance(config, AlignConfig) and not config.alignment.recompute_views:
            lower += ", or set alignment.recompute_views=true"
        if parallel.activation_checkpointing is not ActivationCheckpointing.full:
            lower += ", or set trainer.parallel.activation_checkpointing=selective or full"
        yield f"a step takes {_gigabytes(memory.peak)}, more than a device's {_gigabytes(device_bytes)}: {lower}"


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.3g} GB" if num_bytes < 100e9 else f"{num_bytes / 1e9:,.0f} GB"

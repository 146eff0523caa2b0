"""The `estimate` command: what would a training run need, of memory, time and disk, on GPUs that need not be here?"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from lit_illada import build
from lit_illada.checkpoints.open import load_sft, with_model_of_init
from lit_illada.config import RunConfig, SFTConfig, compose_tree, load
from lit_illada.cost.memory import MicroBatch, StepMemory, kernel_on, recomputed_activation_bytes, step_memory
from lit_illada.cost.run_cost import row_length, selected_fraction, step_flops, with_vocabulary
from lit_illada.cost.run_time import TYPICAL_MFU
from lit_illada.errors import UserError, unknown
from lit_illada.model.config import ModelConfig, parameters_by_part
from lit_illada.model.lora import num_adapter_parameters
from lit_illada.runtime.console import Console
from lit_illada.schema import from_tree, to_tree
from lit_illada.training.callbacks.throughput import matmul_flops_per_s
from lit_illada.training.config.parallel import ActivationCheckpointing, ParallelConfig, Strategy
from lit_illada.training.config.trainer import Accelerator, Precision, TrainerConfig


@dataclass(frozen=True)
class Device:
    """bf16_flops_per_s, float32_flops_per_s: the makers' peaks, dense, float32 without TF32. memory_bytes: in all."""

    bf16_flops_per_s: float
    float32_flops_per_s: float
    memory_bytes: float

    def peak(self, precision: Precision) -> float:
        return self.bf16_flops_per_s if precision is Precision.bf16_mixed else self.float32_flops_per_s


# NVIDIA's data sheets of the SXM cards: "H200 Tensor Core GPU", "H100 Tensor Core GPU" (which state bfloat16 with
# sparsity, twice the dense rate taken here) and "A100 Tensor Core GPU"
GPUS = {
    "h200": Device(989e12, 67e12, 141e9),
    "h100": Device(989e12, 67e12, 80e9),
    "a100": Device(312e12, 19.5e12, 80e9),
}
CPU = "cpu"


@dataclass(frozen=True)
class Estimate:
    """num_adapters: parameters that alone are trained; None: all are. recomputed: activations, were every layer
    computed again in the backward pass. origin: of the peak's number.
    """

    parameters: dict[str, int]
    num_adapters: int | None
    memory: StepMemory
    recomputed: int
    device_bytes: float | None
    flops_per_token: float
    peak_flops_per_s: float
    origin: str
    mfu: float
    num_devices: int
    tokens: float
    batch_tokens: int
    disk_bytes: int
    problems: list[str]

    @property
    def tokens_per_s(self) -> float:
        return self.peak_flops_per_s * self.mfu * self.num_devices / self.flops_per_token

    @property
    def days(self) -> float:
        return self.tokens / self.tokens_per_s / 86400


def run(
    command: str,
    overrides: Sequence[str],
    gpu: str,
    gpus: int | None,
    tokens: float | None,
    mfu: float | None,
    base: Path | None = None,
) -> None:
    """Print the estimate of a config."""
    show(estimate(command, overrides, gpu, gpus, tokens, mfu, base), Console())


def estimate(
    command: str,
    overrides: Sequence[str],
    gpu: str,
    gpus: int | None = None,
    tokens: float | None = None,
    mfu: float | None = None,
    base: Path | None = None,
) -> Estimate:
    """base: the checkpoint that is fine-tuned. gpus, tokens: None for the config's own. mfu: share of the peak; None
    for what runs of this code typically reach.

    Attention counts every token pair of a row, as though each row were one document: at most what it takes.
    """
    _check(gpu, gpus, tokens, mfu)
    problems: list[str] = []
    if gpus is not None:
        overrides, problems = _on(gpus, command, overrides)
    config = _config(command, base, overrides)
    if base is None and isinstance(config, SFTConfig) and config.epochs is not None and tokens is None:
        problems.append(
            f"epochs={config.epochs:g} is not counted, for that takes a checkpoint's tokenizer: this is "
            f"trainer.max_steps={config.trainer.max_steps}"
        )
    tree, trainer = to_tree(config), config.trainer
    model = with_vocabulary(config.model, tree)
    if model.vocab_size is None:
        raise UserError(
            "model.vocab_size is null and the data's tokenizer is not here: set model.vocab_size=32000, or what it has"
        )
    num_devices = trainer.world_size
    trainer.parallel.check_model(model, num_devices)
    accelerator = Accelerator.cpu if gpu == CPU else Accelerator.gpu
    precision = trainer.precision.resolve(accelerator)
    batch = _micro_batch(config, model, row_length(tree), "cpu" if gpu == CPU else "cuda", precision.dtype.itemsize)
    memory = step_memory(
        model,
        config.optim.optimizer,
        batch,
        has_moving_average=trainer.ema_decay is not None,
        is_accumulating=trainer.accumulation > 1,
        parallel=trainer.parallel,
        world_size=num_devices,
    )
    batch_tokens = trainer.batch_rows * row_length(tree)
    flops = step_flops(tree)
    assert flops is not None, "the vocabulary is known"
    device_bytes = None if gpu == CPU else GPUS[gpu].memory_bytes
    return Estimate(
        parameters=parameters_by_part(model),
        num_adapters=num_adapter_parameters(model, config.lora),
        memory=memory,
        recomputed=recomputed_activation_bytes(model, batch),
        device_bytes=device_bytes,
        flops_per_token=flops / batch_tokens,
        peak_flops_per_s=_peak(gpu, precision),
        origin="measured here, by matrix products" if gpu == CPU else f"the maker's, {precision}",
        mfu=TYPICAL_MFU[accelerator] if mfu is None else mfu,
        num_devices=num_devices,
        tokens=trainer.max_steps * batch_tokens if tokens is None else tokens,
        batch_tokens=batch_tokens,
        disk_bytes=_num_kept(trainer) * memory.checkpoint,
        problems=[*problems, *_problems(config, memory, device_bytes)],
    )


def _check(gpu: str, gpus: int | None, tokens: float | None, mfu: float | None) -> None:
    """Raises UserError for a GPU that is not known, or a number out of its range."""
    if gpu != CPU and gpu not in GPUS:
        raise unknown("GPU", gpu, [*GPUS, CPU])
    if gpus is not None and gpus < 1:
        raise UserError(f"--gpus is {gpus}: it must be above 0")
    for name, value in (("tokens", tokens), ("mfu", mfu)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} is {value:g}: it must be above 0")
    if mfu is not None and mfu > 1:
        raise UserError(f"--mfu is {mfu:g}: a share of the peak, it must lie above 0 and be 1 at most")


def _micro_batch(config: RunConfig, model: ModelConfig, length: int, device: str, compute_bytes: int) -> MicroBatch:
    """What one device holds at once."""
    trainer = config.trainer
    rows, share = selected_fraction(config, trainer.micro_batch_rows)
    num_selected = math.ceil(share * rows * length)
    kernel = kernel_on(model, device, compute_bytes, length)
    batch = MicroBatch(rows, length, num_selected, compute_bytes, kernel, device, is_packed=True, lora=config.lora)
    return batch.shared(trainer.parallel, trainer.world_size)


def _config(command: str, base: Path | None, overrides: Sequence[str]) -> RunConfig:
    """As the command itself would train it, but that a model to fine-tune may be named by its size alone."""
    if command == "pretrain":
        if base is not None:
            raise UserError(f"estimate pretrain {base}: that begins with a checkpoint's weights by init_from={base}")
        return load("pretrain", with_model_of_init(overrides))
    if base is not None:
        return build.with_steps_of_epochs(*load_sft(base, overrides))
    if not any(override.lstrip("+").startswith(("model=", "model.")) for override in overrides):
        raise UserError("nothing to fine-tune: give a checkpoint, or a model's size by +model=illada_8b")
    return load("sft", overrides)


def _on(gpus: int, command: str, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides with so many devices and a batch that these can share; a problem where that is another batch."""
    if twice := next((text for text in overrides if text.startswith(("trainer.devices=", "trainer.num_nodes="))), None):
        raise UserError(f"--gpus counts all devices: leave out {twice}")
    tree = compose_tree(command, overrides)["trainer"]
    alone = {"devices": 1, "num_nodes": 1, "parallel": to_tree(ParallelConfig())}
    trainer = from_tree(TrainerConfig, {**tree, **alone}, "trainer.")
    num_data_ranks = max(1, gpus // from_tree(ParallelConfig, tree["parallel"], "trainer.parallel.").tensor_parallel)
    devices = [*overrides, f"trainer.devices={gpus}", "trainer.num_nodes=1"]
    at_once = trainer.micro_batch_rows * num_data_ranks
    batch_rows = at_once * math.ceil(trainer.batch_rows / at_once)
    if batch_rows == trainer.batch_rows:
        return devices, []
    problem = (
        f"trainer.batch_rows={trainer.batch_rows} is no multiple of micro_batch_rows × devices = "
        f"{trainer.micro_batch_rows} × {num_data_ranks}: set trainer.batch_rows={batch_rows}, as is done here"
    )
    return [*devices, f"trainer.batch_rows={batch_rows}"], [problem]


def _num_kept(trainer: TrainerConfig) -> int:
    """Checkpoints at the end of a run."""
    regular = 0 if trainer.keep_every_steps is None else trainer.max_steps // trainer.keep_every_steps
    return trainer.keep_checkpoints + trainer.keep_best + regular


def show(found: Estimate, console: Console) -> None:
    memory = found.memory
    total = sum(found.parameters.values()) + (found.num_adapters or 0)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for part, count in found.parameters.items():
        table.add_row("parameters", part.replace("_", " "), f"{count:,}")
    if found.num_adapters is not None:
        table.add_row("", "adapters, all that is trained", f"{found.num_adapters:,}")
    table.add_row("", "all", f"{total:,}", end_section=True)
    for part, held in {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer state": memory.optimizer,
        "moving average": memory.moving_average,
        "copies of the weights, to multiply": memory.casts,
        "activations": memory.activations,
        "a layer computed again": memory.recomputed,
        "LM head and loss": memory.head,
        "the most at once": memory.peak,
    }.items():
        if held:
            table.add_row("memory a device", part, _gigabytes(held))
    table.add_row("", "activations, if layers were recomputed", _gigabytes(found.recomputed))
    table.add_row("work", "FLOPs a token", f"{found.flops_per_token:.3g}")
    table.add_row("", "FLOPs in all", f"{found.flops_per_token * found.tokens:.3g}")
    peak = f"{found.peak_flops_per_s:.3g} FLOP/s a device, {found.origin}; {found.mfu:.0%} of it assumed"
    table.add_row("time", "speed", peak)
    table.add_row("", "tokens/s", f"{found.tokens_per_s:,.0f} on {found.num_devices}")
    steps = math.ceil(found.tokens / found.batch_tokens)
    table.add_row("", f"{found.tokens:.3g} tokens", f"{_duration(found.days)} ({steps:,} steps)")
    table.add_row("disk", "kept checkpoints", _gigabytes(found.disk_bytes))
    console.print(table, highlight=False)
    for problem in found.problems:
        console.print(f"! {problem}", highlight=False, soft_wrap=True)


def _problems(config: RunConfig, memory: StepMemory, device_bytes: float | None) -> Iterator[str]:
    trainer = config.trainer
    parallel = trainer.parallel
    if device_bytes is None or memory.peak <= 0.95 * device_bytes:
        return
    state = memory.state + memory.gradients + memory.casts
    if state > 0.95 * device_bytes:
        is_cut = parallel.resolve(trainer.world_size) is Strategy.fsdp
        remedy = (
            "more devices, or a larger trainer.parallel.shard_size, hold less each"
            if is_cut
            else "every device holds them whole; trainer.parallel.strategy=fsdp shares them out"
        )
        yield (
            f"weights, gradients and optimizer take {_gigabytes(state)} of a device's {_gigabytes(device_bytes)}: "
            f"{remedy}"
        )
    else:
        lower = f"lower trainer.micro_batch_rows={trainer.micro_batch_rows}"
        if parallel.activation_checkpointing is not ActivationCheckpointing.full:
            lower += ", or set trainer.parallel.activation_checkpointing=selective or full"
        yield f"more than a device's {_gigabytes(device_bytes)}: {lower}"


def _peak(gpu: str, precision: Precision) -> float:
    if gpu != CPU:
        return GPUS[gpu].peak(precision)
    return matmul_flops_per_s(torch.device("cpu"), precision.dtype)


def _gigabytes(held: float) -> str:
    return f"{held / 1e9:,.3g} GB" if held < 100e9 else f"{held / 1e9:,.0f} GB"


def _duration(days: float) -> str:
    for unit, length in (("days", 1.0), ("hours", 1 / 24), ("minutes", 1 / 1440)):
        if days >= 1.5 * length:
            return f"{days / length:,.1f} {unit}"
    return f"{days * 86400:,.0f} seconds"

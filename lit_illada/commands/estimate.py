"""The `estimate` command: memory, time and disk space of a training run, for GPUs that need not be present."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lit_illada import build
from lit_illada.checkpoints.start import load_align, load_pretrain, load_sft
from lit_illada.commands.estimate_table import Estimate, memory_problems, print_estimate
from lit_illada.config import AlignConfig, ObjectiveRunConfig, RunConfig, SFTConfig, compose_tree, load
from lit_illada.cost.alignment import TYPICAL_PROMPT, align_step_flops, completion_passes, rollout_bytes
from lit_illada.cost.devices import GPUS
from lit_illada.cost.memory import MicroBatch, recomputed_activation_bytes
from lit_illada.cost.run_cost import (
    align_micro_batch,
    memory_of_step,
    micro_batch,
    row_length,
    step_flops,
    with_vocabulary,
)
from lit_illada.cost.run_time import TYPICAL_MFU
from lit_illada.data.sft.config import Padded, PadTo
from lit_illada.errors import UserError, unknown
from lit_illada.model.config import ModelConfig, parameters_by_part
from lit_illada.model.lora import num_adapter_parameters
from lit_illada.runtime.console import Console
from lit_illada.schema import from_tree, to_tree
from lit_illada.training.config.parallel import ParallelConfig
from lit_illada.training.config.trainer import Accelerator, Precision, TrainerConfig
from lit_illada.training.matmul_speed import matmul_flops_per_s

CPU = "cpu"


def run_estimate(
    command: str,
    overrides: Sequence[str],
    gpu: str,
    gpus: int | None,
    tokens: float | None,
    mfu: float | None,
    base: Path | None = None,
) -> None:
    """Print the estimate of a config."""
    print_estimate(estimate(command, overrides, gpu, gpus, tokens, mfu, base), Console())


def estimate(
    command: str,
    overrides: Sequence[str],
    gpu: str,
    gpus: int | None = None,
    tokens: float | None = None,
    mfu: float | None = None,
    base: Path | None = None,
) -> Estimate:
    """Estimates a training run on devices that need not be present.

    Attention is counted as though each row were one document, an upper limit for packed rows.

    Args:
        command: `pretrain`, `sft` or `align`.
        overrides: KEY=VALUE of its config.
        gpu: a name in GPUS, or `cpu`.
        gpus: number of devices; None: as in the config.
        tokens: training tokens, in an alignment those of the completions, once per update; None: as in the config.
        mfu: fraction of the peak throughput, 0 to 1; None: typical of this code.
        base: checkpoint to fine-tune or align; None: the config names the model.

    Raises:
        UserError: an argument is out of range, the config is invalid, or the vocabulary size is unknown.
    """
    _check(gpu, gpus, tokens, mfu)
    problems: list[str] = []
    if gpus is not None:
        overrides, problems = _on(gpus, command, overrides)
    config, prompt_length = _config(command, base, overrides)
    if base is None and tokens is None:
        problems += _ignored_epochs(config)
    problems += _counted_padding(config)
    tree, trainer = to_tree(config), config.trainer
    model = _model(config, tree)
    accelerator = Accelerator.cpu if gpu == CPU else Accelerator.gpu
    length = row_length(tree) if prompt_length is None else prompt_length + config.generation.max_new_tokens
    batch = _micro_batch(config, model, accelerator, length)
    memory = memory_of_step(config, model, batch)
    rollout, flops, batch_tokens = 0, step_flops(tree), trainer.batch_rows * length
    phases: dict[str, tuple[int, float]] = {}
    if isinstance(config, AlignConfig):
        phases = _phases(config, model, prompt_length)
        rollout = rollout_bytes(config, model, length, batch.compute_bytes)
        flops = sum(flops for _, flops in phases.values())
        batch_tokens = trainer.batch_rows * config.generation.max_new_tokens
    assert flops is not None, "the vocabulary is known"
    device_bytes = None if gpu == CPU else GPUS[gpu].memory_bytes
    peak_flops_per_s, origin = _peak(gpu, trainer.precision.resolve(accelerator))
    return Estimate(
        parameters=parameters_by_part(model),
        num_adapters=num_adapter_parameters(model, config.lora),
        memory=memory,
        recomputed=recomputed_activation_bytes(model, batch),
        device_bytes=device_bytes,
        flops_per_token=flops / batch_tokens,
        peak_flops_per_s=peak_flops_per_s,
        origin=origin,
        mfu=TYPICAL_MFU[accelerator] if mfu is None else mfu,
        num_devices=trainer.world_size,
        tokens=trainer.max_steps * batch_tokens if tokens is None else tokens,
        batch_tokens=batch_tokens,
        disk_bytes=_num_checkpoints(trainer) * memory.checkpoint,
        problems=[*problems, *memory_problems(config, memory, device_bytes, rollout)],
        phases=phases,
        rollout=rollout,
    )


def _phases(config: AlignConfig, model: ModelConfig, prompt_length: int | None) -> dict[str, tuple[int, float]]:
    """Passes per completion and rollout, and FLOPs per optimizer step, of each phase of an alignment."""
    flops = align_step_flops(config, model, prompt_length or TYPICAL_PROMPT)
    return {phase: (passes, flops[phase]) for phase, passes in completion_passes(config).by_phase().items()}


def _micro_batch(config: RunConfig, model: ModelConfig, accelerator: Accelerator, length: int) -> MicroBatch:
    if isinstance(config, AlignConfig):
        return align_micro_batch(config, model, accelerator, length)
    assert isinstance(config, ObjectiveRunConfig)
    return micro_batch(config, model, accelerator, length)


def _check(gpu: str, gpus: int | None, tokens: float | None, mfu: float | None) -> None:
    """Raises UserError for an unknown GPU or a number out of range."""
    if gpu != CPU and gpu not in GPUS:
        raise unknown("GPU", gpu, [*GPUS, CPU])
    if gpus is not None and gpus < 1:
        raise UserError(f"--gpus is {gpus}: it must be above 0")
    for name, value in (("tokens", tokens), ("mfu", mfu)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} is {value:g}: it must be above 0")
    if mfu is not None and mfu > 1:
        raise UserError(f"--mfu is {mfu:g}: a fraction of the peak throughput, it must be above 0 and at most 1")


def _model(config: RunConfig, tree: dict[str, Any]) -> ModelConfig:
    """The model with its vocabulary size. Raises UserError if that is unknown or the devices cannot share the model."""
    model = with_vocabulary(config.model, tree)
    if model.vocab_size is None:
        raise UserError(
            "model.vocab_size is null and the tokenizer of the data is not available here: set model.vocab_size to its "
            "size, for example 32000"
        )
    config.trainer.parallel.check_model(model, config.trainer.world_size)
    return model


def _ignored_epochs(config: RunConfig) -> list[str]:
    """A note that `epochs` cannot be converted to steps without a checkpoint's tokenizer; empty if it is not set."""
    if not isinstance(config, SFTConfig) or config.epochs is None:
        return []
    return [
        f"epochs={config.epochs:g} is ignored, since counting its steps needs the tokenizer of a checkpoint: this "
        f"estimate is for trainer.max_steps={config.trainer.max_steps}"
    ]


def _counted_padding(config: RunConfig) -> list[str]:
    """A note that rows are counted at full length where the run pads them to the longest of a step."""
    if not isinstance(config, SFTConfig):
        return []
    rows = config.sft_data.rows
    if not isinstance(rows, Padded) or rows.pad_to is PadTo.ROW:
        return []
    return [
        f"rows are counted with sft_data.row_length={config.sft_data.row_length} tokens, but padded to the longest "
        "example of a step: FLOPs and time are upper bounds"
    ]


def _config(command: str, base: Path | None, overrides: Sequence[str]) -> tuple[Any, int | None]:
    """The config that the command would train, and the tokens of the longest prompt of an alignment if it is known.

    Fine-tuning and alignment need no checkpoint if the overrides choose a model.
    """
    if command == "pretrain":
        if base is not None:
            raise UserError(f"estimate pretrain {base}: to start from a checkpoint's weights, set init_from={base}")
        return load_pretrain(overrides)[0], None
    if base is not None and command == "align":
        aligned, checkpoint = load_align(base, overrides)
        prompts = build.build_align_datamodule(aligned, checkpoint.tokenizer).prompts
        return aligned, max(len(prompt.ids) for prompt in (*prompts.train, *prompts.held_out))
    if base is not None:
        config, checkpoint = load_sft(base, overrides)
        return config.resolve(build.build_sft_datamodule(config, checkpoint.tokenizer).steps), None
    if not any(override.lstrip("+").startswith(("model=", "model.")) for override in overrides):
        verb = {"sft": "fine-tune"}.get(command, command)
        raise UserError(f"nothing to {verb}: give a checkpoint, or choose a model with +model=illada_8b")
    loaded = load(command, overrides)
    return loaded.resolve() if command == "align" else loaded, None


def _on(gpus: int, command: str, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides for that many devices, with the batch rounded up to a multiple; a problem if it was rounded."""
    if twice := next((text for text in overrides if text.startswith(("trainer.devices=", "trainer.num_nodes="))), None):
        raise UserError(f"--gpus counts all devices: leave out {twice}")
    tree = compose_tree(command, overrides)["trainer"]
    # the batch of the config need not divide by the devices yet: validate it on one device
    one_device = {"devices": 1, "num_nodes": 1, "parallel": to_tree(ParallelConfig())}
    trainer = from_tree(TrainerConfig, {**tree, **one_device}, "trainer.")
    num_data_ranks = max(1, gpus // from_tree(ParallelConfig, tree["parallel"], "trainer.parallel.").tensor_parallel)
    devices = [*overrides, f"trainer.devices={gpus}", "trainer.num_nodes=1"]
    if command == "align":  # its batch follows from the prompts
        return devices, []
    rows_per_pass = trainer.micro_batch_rows * num_data_ranks
    batch_rows = rows_per_pass * math.ceil(trainer.batch_rows / rows_per_pass)
    if batch_rows == trainer.batch_rows:
        return devices, []
    problem = (
        f"trainer.batch_rows={trainer.batch_rows} is not a multiple of micro_batch_rows × devices "
        f"= {trainer.micro_batch_rows} × {num_data_ranks}; this estimate assumes "
        f"trainer.batch_rows={batch_rows}: set the same for the run"
    )
    return [*devices, f"trainer.batch_rows={batch_rows}"], [problem]


def _num_checkpoints(trainer: TrainerConfig) -> int:
    """Number of checkpoints on disk at the end of a run."""
    regular = 0 if trainer.keep_every_steps is None else trainer.max_steps // trainer.keep_every_steps
    return trainer.keep_checkpoints + trainer.keep_best + regular


def _peak(gpu: str, precision: Precision) -> tuple[float, str]:
    """Peak throughput of a device, FLOP/s, and its source."""
    if gpu != CPU:
        return GPUS[gpu].peak(precision), f"the manufacturer's peak at {precision}"
    return matmul_flops_per_s(torch.device("cpu"), precision.dtype), "measured here on matrix products"

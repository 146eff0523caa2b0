"""Training step of an adaptation to diffusion (`experiment=adapt`) beside the autoregressive step of the same model.

matmul_fraction: self time of matrix products (mm, addmm, bmm) as a fraction of a profiled step; mfu: model FLOP/s as a
fraction of the GEMM peak, which is measured beside each timing; peak_gb: peak of allocated memory while the model is
built and takes its first steps; peak_over_estimate: that peak divided by what `estimate` says of the step. The first
three of `adapt` are also given as a ratio to those of the autoregressive step, within a repeat. Inputs are random
tokens.

On a CPU, memory is measured in processes of their own. By default glibc retains freed blocks of up to 32 MB for reuse:
resident_peak_gb includes them. peak_gb is the resident peak of a process that returns them to the system at once.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from lit_illada.batch import TokenBatch
from lit_illada.bench.figure import figure, peak_bytes, seconds
from lit_illada.bench.training_step import Case, TrainingStep, batches, fill
from lit_illada.config import PretrainConfig, load
from lit_illada.cost.run_cost import memory_of_step, micro_batch
from lit_illada.model.transformer import Transformer
from lit_illada.objective.autoregressive import AutoregressiveObjective
from lit_illada.objective.config import AutoregressiveObjectiveConfig
from lit_illada.objective.diffusion import DiffusionObjective
from lit_illada.runtime.terminal import print_content
from lit_illada.training.matmul_speed import matmul_flops_per_s
from lit_illada.training.optim import build_optimizer

_WAYS = {
    "adapt": ["experiment=adapt", "init_from=null"],
    "autoregressive": ["model.is_causal=true", "objective=autoregressive"],
}
_MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
_RETURNED_BLOCK_BYTES = 65_536  # freed blocks of this size and more are returned to the system
_MEMORY_STEPS = 2  # the optimizer's state exists from the second on


def measure(model: str = "smollm2_135m", num_rows: int = 4, row_length: int = 128, repeats: int = 3) -> dict[str, Any]:
    """Figures of both steps and their ratios. model: a name in conf/model."""
    case = Case(model, num_rows, row_length)
    configs = {name: _config(case, overrides) for name, overrides in _WAYS.items()}
    peaks = _measured_peaks(configs["adapt"].trainer.hardware()[0].device, case)
    figures: dict[str, Any] = {name: _memory(config, case, peaks[name]) for name, config in configs.items()}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in configs}
    steps = {name: _step(config, case) for name, config in configs.items()}
    timed = list(islice(batches(case, configs["adapt"].model.known_vocab_size), 1 + repeats))
    for step in steps.values():
        step(timed[0])  # a warm-up
    for batch in timed[1:]:
        for name, step in steps.items():
            rounds[name].append(_rates(step, batch))
    for name, measured in rounds.items():
        figures[name] |= {kind: figure([one[kind] for one in measured]) for kind in measured[0]}
    both = list(zip(rounds["adapt"], rounds["autoregressive"], strict=True))
    ratios = {kind: figure([one[kind] / other[kind] for one, other in both]) for kind in rounds["adapt"][0]}
    return {**figures, "adapt / autoregressive": ratios}


def _config(case: Case, overrides: Sequence[str]) -> PretrainConfig:
    rows = [f"trainer.{name}={case.num_rows}" for name in ("batch_rows", "micro_batch_rows")]
    config = load("pretrain", [*overrides, f"model={case.model}", f"data.row_length={case.row_length}", *rows])
    return config.resolve(case.config().known_vocab_size)


def _step(config: PretrainConfig, case: Case) -> TrainingStep:
    accelerator, precision = config.trainer.hardware()
    with torch.device(accelerator.device):
        model = Transformer(config.model)
    fill(model)
    mask_token_id = config.model.known_vocab_size - 1
    objective = (
        AutoregressiveObjective(config.objective, eos_token_id=0)
        if isinstance(config.objective, AutoregressiveObjectiveConfig)
        else DiffusionObjective(config.objective, mask_token_id, 0, case.num_rows)
    ).to(accelerator.device)
    optimizer = build_optimizer(model, config.optim.optimizer)
    return TrainingStep(model, config.model, objective, optimizer, precision, accelerator.device)


def _measured_peaks(device: torch.device, case: Case) -> dict[str, dict[str, float]]:
    """Peak memory of each way in GB, by kind; empty where it cannot be measured."""
    if device.type == "cuda":
        kinds = {"peak_gb": _peaks(case)}
    else:
        returning = {"MALLOC_MMAP_THRESHOLD_": str(_RETURNED_BLOCK_BYTES)}
        kinds = {"peak_gb": _peaks_in_process(case, returning), "resident_peak_gb": _peaks_in_process(case, {})}
    return {
        name: {kind: peak for kind, by_way in kinds.items() if (peak := by_way[name]) is not None} for name in _WAYS
    }


def _memory(config: PretrainConfig, case: Case, peaks: Mapping[str, float]) -> dict[str, float]:
    """The measured peaks of a way beside the estimated one; empty without measured ones."""
    if not peaks:
        return {}
    batch = micro_batch(config, config.model, config.trainer.hardware()[0], case.row_length)
    estimated_gb = memory_of_step(config, config.model, batch).peak / 1e9
    ratio = peaks["peak_gb"] / estimated_gb
    return {**peaks, "estimated_peak_gb": estimated_gb, "peak_over_estimate": ratio}


def _peaks_in_process(case: Case, environment: Mapping[str, str]) -> dict[str, float | None]:
    """`_peaks` in a new process with these environment variables."""
    arguments = [case.model, str(case.num_rows), str(case.row_length)]
    command = [sys.executable, "-m", "lit_illada.bench.adapt", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment)
    peaks: dict[str, float | None] = json.loads(done.stdout)
    return peaks


def _peaks(case: Case) -> dict[str, float | None]:
    """GB by way, above the memory in use before; None where it cannot be measured."""
    return {name: _peak_of_first_steps(_config(case, overrides), case) for name, overrides in _WAYS.items()}


def _peak_of_first_steps(config: PretrainConfig, case: Case) -> float | None:
    inputs = list(islice(batches(case, config.model.known_vocab_size), _MEMORY_STEPS))

    def first_steps() -> None:
        step = _step(config, case)
        for batch in inputs:
            step(batch)

    peak = peak_bytes(config.trainer.hardware()[0].device, first_steps)
    gc.collect()  # a step holds cycles
    return None if peak is None else peak / 1e9


def _rates(step: TrainingStep, batch: TokenBatch) -> dict[str, float]:
    """Figures of one timed and one profiled step."""
    elapsed_s = seconds(lambda: step(batch), step.device)
    peak = matmul_flops_per_s(step.device, step.precision.dtype)
    return {
        "tokens_per_s": batch.input_ids.numel() / elapsed_s,
        "mfu": step.flops(batch) / elapsed_s / peak,
        "matmul_fraction": _matmul_fraction(step, batch),
    }


def _matmul_fraction(step: TrainingStep, batch: TokenBatch) -> float:
    is_on_cuda = step.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_on_cuda else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        step(batch)
        if is_on_cuda:
            torch.cuda.synchronize()
    kind = "self_device_time_total" if is_on_cuda else "self_cpu_time_total"
    spent = {event.key: float(getattr(event, kind)) for event in profiler.key_averages()}
    return sum(spent.get(name, 0.0) for name in _MATRIX_PRODUCTS) / sum(spent.values())


if __name__ == "__main__":
    name, num_rows, row_length = sys.argv[1:]
    print_content(json.dumps(_peaks(Case(name, int(num_rows), int(row_length)))))

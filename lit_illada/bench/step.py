"""Speed and memory of training steps, by model size, row length, attention kernel, precision and compilation.

tokens_per_s; optimizer_fraction: time of clipping and optimizer as a fraction of the step; optimizer_flops_fraction:
the optimizer's matrix products as a fraction of the step's FLOPs, for Muon; mfu: model FLOP/s as a fraction of the GEMM
peak; gemm_peak_tflops: that peak, measured with square matrix products beside each timing; peak_gb: peak memory. Inputs
are random tokens in packed documents.
"""

import gc
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_illada.bench.figure import did_not_run, figure, peak_bytes, seconds
from lit_illada.bench.profile import profile_step
from lit_illada.bench.training_step import Case, TrainingStep, batches
from lit_illada.model.config import AttentionKernel
from lit_illada.training.config.parallel import ActivationCheckpointing
from lit_illada.training.config.trainer import Precision
from lit_illada.training.matmul_speed import matmul_flops_per_s

# Cases of a group alternate and are reported relative to the first, so they must fit on the device together. Without a
# precision a case has that of training; a case that is then equal to an earlier one is dropped.
CPU_GROUPS = [
    [
        Case("nano", 16, 256),
        Case("nano", 16, 256, optimizer="muon"),
        Case("nano", 16, 256, optimizer="torch-muon"),
        Case("nano", 16, 256, AttentionKernel.SDPA),
        Case("nano", 16, 256, precision=Precision.float32),
        Case("nano", 16, 256, precision=Precision.bf16_mixed),
        Case("nano", 16, 256, is_compiled=True),
    ],
    [Case("nano", 4, 1024), Case("nano", 4, 1024, AttentionKernel.MATMUL)],
    [
        Case("pico", 32, 128),
        Case("pico", 32, 128, precision=Precision.float32),
        Case("pico", 32, 128, precision=Precision.bf16_mixed),
        Case("pico", 32, 128, is_compiled=True),
        Case("pico", 32, 128, optimizer="muon"),
        Case("pico", 32, 128, optimizer="torch-muon"),
    ],
]
GPU_GROUPS = [
    [
        Case("100m", 4, 8192, is_compiled=True),
        Case("100m", 4, 8192),
        Case("100m", 4, 8192, AttentionKernel.SDPA, is_compiled=True),
        Case("100m", 4, 8192, precision=Precision.float32),
    ],
    [Case("100m", 16, 2048, is_compiled=True)],
    [Case("1b", 4, 8192, is_compiled=True)],
    [Case("1b", 4, 8192)],
    [
        Case(
            "illada_8b",
            1,
            8192,
            is_compiled=True,
            recomputation=ActivationCheckpointing.selective,
            optimizer="adamw8bit",
        )
    ],
    [Case("illada_8b", 2, 8192, is_compiled=True, recomputation=ActivationCheckpointing.full, optimizer="adamw8bit")],
]


def measure(profile: Path | None = None) -> dict[str, Any]:
    """Figures of the cases for this machine. profile: folder for a profile of the first case; None: no profile."""
    if torch.cuda.is_available():
        return measure_groups(GPU_GROUPS, torch.device("cuda"), profile=profile)
    return measure_groups(CPU_GROUPS, torch.device("cpu"), profile=profile)


def measure_groups(
    groups: Sequence[Sequence[Case]],
    device: torch.device,
    *,
    repeats: int = 5,
    steps: int = 3,
    profile: Path | None = None,
) -> dict[str, Any]:
    """Figures by case, or why a case could not run, such as a missing kernel or compiler or too little memory.

    The cases of a group alternate, `repeats` times `steps` steps each; `times CASE` is the case's tokens/s
    divided by those of CASE, the first of its group, within a repeat.
    """
    figures: dict[str, Any] = {}
    for index, cases in enumerate(groups):
        group = list(dict.fromkeys(case.on(device) for case in cases))
        try:
            figures |= _measure_group(group, device, repeats, steps, profile if index == 0 else None)
        except Exception as error:  # each case ran by itself, but not while the others are in memory
            figures |= {case.name: did_not_run(error) for case in group}
        gc.collect()
        if device.type == "cuda":
            # compiled code would keep the models of the group in memory
            torch.compiler.reset()
            torch.cuda.empty_cache()
    return figures


def _measure_group(
    group: Sequence[Case], device: torch.device, repeats: int, steps: int, profile: Path | None
) -> dict[str, Any]:
    figures: dict[str, Any] = {case.name: {} for case in group}
    runners: dict[str, _Runner] = {}
    for case in group:
        try:
            runners[case.name] = runner = _Runner(case, device, steps)
            if (peak := runner.peak_bytes()) is not None:
                figures[case.name]["peak_gb"] = peak / 1e9
            if flops := runner.optimizer_flops_fraction():
                figures[case.name]["optimizer_flops_fraction"] = flops
        except Exception as error:
            runners.pop(case.name, None)
            figures[case.name] = did_not_run(error)
    if profile is not None and runners:
        name, runner = next(iter(runners.items()))
        figures[name]["seconds_by_part"] = profile_step(runner.step, runner.batches[0], profile, name.replace(" ", "_"))
    rounds = [{name: runner.rates() for name, runner in runners.items()} for _ in range(repeats)]
    first = next(iter(runners), "")
    for name in runners:
        for kind in rounds[0][name]:
            figures[name][kind] = figure([measured[name][kind] for measured in rounds])
        if name != first:
            speed = "tokens_per_s"
            figures[name][f"times {first}"] = figure([one[name][speed] / one[first][speed] for one in rounds])
    return figures


class _Runner:
    """A case with its model and the batches of all timings."""

    def __init__(self, case: Case, device: torch.device, steps: int) -> None:
        self.case, self.device = case, device
        self.batches = list(islice(batches(case, case.config().known_vocab_size), steps))

    def peak_bytes(self) -> int | None:
        """Peak memory, bytes, of building the model and of a first round, with compilation and optimizer state."""

        def first_round() -> None:
            self.step = TrainingStep.of(self.case, self.device)
            for batch in self.batches:
                self.step(batch)

        return peak_bytes(self.device, first_round)

    def optimizer_flops_fraction(self) -> float:
        """Matrix products of a step's optimizer as a fraction of the step's FLOPs; 0 where it has none."""
        self.step.backward(self.batches[0])
        with FlopCounterMode(display=False) as counter:
            self.step.update()
        flops = counter.get_total_flops()
        return flops / (flops + self.step.flops(self.batches[0]))

    def rates(self) -> dict[str, float]:
        """Times one round. The GEMM peak is measured each time, as on a shared machine both vary together."""
        self.flops, self.optimizer_s = 0, 0.0
        elapsed_s = seconds(self._steps, self.device)
        peak = matmul_flops_per_s(self.device, self.case.precision.dtype)
        num_tokens = sum(batch.input_ids.numel() for batch in self.batches)
        return {
            "tokens_per_s": num_tokens / elapsed_s,
            "optimizer_fraction": self.optimizer_s / elapsed_s,
            "mfu": self.flops / elapsed_s / peak,
            "gemm_peak_tflops": peak / 1e12,
        }

    def _steps(self) -> None:
        for batch in self.batches:
            self.step.backward(batch)
            self.optimizer_s += seconds(self.step.update, self.device)
            self.flops += self.step.flops(batch)

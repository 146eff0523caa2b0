"""How many runs of a sweep this machine executes at a time, and on which of its cores and GPUs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lit_illada.cost.run_cost import memory_bytes
from lit_illada.errors import UserError
from lit_illada.runtime.cores import usable_cores
from lit_illada.sweep.folder import PlannedRun
from lit_illada.sweep.pool import Slot, cpu_slots, gpu_slots
from lit_illada.sweep.slurm import SlurmOptions
from lit_illada.training.config.trainer import Accelerator


@dataclass(frozen=True)
class Workers:
    """Resources of a sweep."""

    at_once: int | None  # runs at a time; None: as many as memory and cores, or GPUs, allow
    threads: int  # per run
    slurm: SlurmOptions | None = None  # None: run on this machine


def accelerator_of(runs: Sequence[PlannedRun], *, is_required: bool = True) -> Accelerator:
    """Accelerator of the runs. is_required: raise UserError if it is absent."""
    named = {Accelerator(run.config.get("trainer", run.config)["accelerator"]) for run in runs}
    if not is_required:
        named -= {Accelerator.gpu}
    resolved = {accelerator.resolve() for accelerator in named}
    return Accelerator.gpu if Accelerator.gpu in resolved else Accelerator.cpu


def slots_of(runs: Sequence[PlannedRun], workers: Workers, *, is_required: bool = True) -> list[Slot]:
    """Slots for runs at a time, by default as many as memory and cores, or GPUs, allow.

    is_required: raise UserError if a run needs more GPUs than there are, instead of returning no slot.
    """
    cores = len(usable_cores())
    if accelerator_of(runs, is_required=is_required) is Accelerator.gpu:
        if is_required and any(run.config["trainer"]["num_nodes"] > 1 for run in runs if "trainer" in run.config):
            raise UserError("trainer.num_nodes is above 1: one machine cannot run that, use --slurm")
        devices, gpus = devices_of(runs), visible_gpus()
        if is_required and devices > len(gpus):
            raise UserError(f"trainer.devices={devices}, but torch finds {len(gpus)} CUDA devices")
        fitting = gpu_slots(gpus, devices, max(1, cores * devices // len(gpus)))
        return fitting[: workers.at_once] if workers.at_once else fitting
    at_once = workers.at_once
    if at_once is None:
        largest = max((memory_bytes(run.config) for run in runs if "model" in run.config), default=1.0)
        at_once = max(1, min(cores // workers.threads, int(_free_memory_bytes() // largest), len(runs)))
    return cpu_slots(at_once, workers.threads)


def devices_of(runs: Sequence[PlannedRun]) -> int:
    """Devices of the run that has most of them."""
    return max((run.config["trainer"]["devices"] for run in runs if "trainer" in run.config), default=1)


def visible_gpus() -> list[str]:
    """Names of the GPUs that runs may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(n) for n in range(torch.cuda.device_count())]


def _free_memory_bytes() -> float:
    """Memory available without swapping, bytes."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return 1024 * float(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    except (OSError, StopIteration):
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")

"""Rank and number of this run's processes, read from the environment.

torchrun, srun and Lightning's launcher set it long before torch.distributed is initialised.
"""

import os
import sys


def command_line(*words: str) -> list[str]:
    """Return the command line of this installation of lit-illada, independent of PATH."""
    return [sys.executable, "-m", "lit_illada", *words]


def rank() -> int:
    """Return the global rank of this process; 0 for a single process."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    if "LOCAL_RANK" in os.environ:  # Lightning's own launcher, which starts one node only
        return int(os.environ["LOCAL_RANK"])
    return int(os.environ.get("SLURM_PROCID", "0")) if _srun_tasks() > 1 else 0


def started_outside() -> int:
    """Return the number of processes that torchrun or srun started; 1 for a process started by hand or by Lightning."""
    return int(os.environ.get("WORLD_SIZE") or _srun_tasks())


def _srun_tasks() -> int:
    return int(os.environ.get("SLURM_NTASKS") or 1)

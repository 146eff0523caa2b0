"""Which of a run's processes is this, how many has somebody started, and how is one more started?

torchrun, srun and Lightning's own launcher say it in the environment, long before torch.distributed could.
"""

import os
import sys


def command_line(*words: str) -> list[str]:
    """A command of this very installation, whatever the PATH holds."""
    return [sys.executable, "-m", "lit_illada", *words]


def rank() -> int:
    """0 for the process that speaks for all, and for one that is alone."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    if "LOCAL_RANK" in os.environ:  # Lightning's own launcher, which knows one node only
        return int(os.environ["LOCAL_RANK"])
    return int(os.environ.get("SLURM_PROCID", "0")) if _srun_tasks() > 1 else 0


def started_outside() -> int:
    """Processes that torchrun or srun started at once; 1 where Lightning or a person started this one."""
    return int(os.environ.get("WORLD_SIZE") or _srun_tasks())


def _srun_tasks() -> int:
    return int(os.environ.get("SLURM_NTASKS") or 1)

"""Measured quantities: a median with minimum and maximum, or the reason why there is none."""

import ctypes
import logging
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_illada.errors import UserError

Figure = dict[str, float]
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_log = logging.getLogger(__name__)


def figure(values: list[float]) -> Figure:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def seconds(run: Callable[[], object], device: torch.device | None = None) -> float:
    """Wall-clock seconds of one call. device: where its work is done; None: in this process alone."""
    started_at = now(device)
    run()
    return now(device) - started_at


def now(device: torch.device | None) -> float:
    """The clock after all queued work of the device is done, since GPU calls return early."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_bytes(device: torch.device, work: Callable[[], object]) -> int | None:
    """The most it held beyond what was held before: of the GPU's memory, or of this process's. None where no one counts
    (on a CPU, where the kernel offers no /proc/self/clear_refs)."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not _CLEAR.exists():
        work()
        return None
    # memory that the allocator retains from earlier work would hide as much of this function's
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5", encoding="ascii")  # the peak begins anew at what is held now (proc(5))
    before = _status_bytes("VmRSS")
    work()
    return _status_bytes("VmHWM") - before


def attempted(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Its figures, or the cause under `did_not_run`: what cannot run here must not cost the figures of the others."""
    try:
        return measure()
    except Exception as error:
        return did_not_run(error)


def did_not_run(error: Exception) -> dict[str, Any]:
    """A compiler or a kernel that is not there, too little memory, or a mistake."""
    _log.debug("did not run", exc_info=error)
    match error:
        case UserError():
            reason = str(error)
        case subprocess.CalledProcessError(returncode=code, stderr=stderr):
            last = "".join(f": {line}" for line in (stderr or "").splitlines()[-1:])
            reason = f"its process ended with code {code} (-9 is often too little memory){last}"
        case _:
            reason = f"{type(error).__name__}: {error}"
    return {"did_not_run": " ".join(reason.split())[:200]}


def _status_bytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024

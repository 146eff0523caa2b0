"""Measurement of time and memory, and the form of results.

A figure is the median, minimum and maximum over repeats. A benchmark that cannot run gives the reason instead.
"""

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
"""median, min and max of a quantity."""
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_log = logging.getLogger(__name__)


def figure(values: list[float]) -> Figure:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def seconds(run: Callable[[], object], device: torch.device | None = None) -> float:
    """Wall-clock seconds of one call. device: the device that it uses; None: only the CPU."""
    started_at = now(device)
    run()
    return now(device) - started_at


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU seconds of this process, all threads, during one call; other programs on the machine disturb them less."""
    started_at = time.process_time()
    run()
    return time.process_time() - started_at


def now(device: torch.device | None) -> float:
    """Seconds on a monotonic clock, after all queued work of the device, since GPU calls return early."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_bytes(device: torch.device, work: Callable[[], object]) -> int | None:
    """Peak memory of `work` in bytes, above the memory in use before: GPU memory, or resident memory of this process.

    None on a CPU without /proc/self/clear_refs (systems other than Linux); `work` is called nevertheless.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not _CLEAR.exists():
        work()
        return None
    # otherwise `work` could reuse memory that the allocator has not returned, which would not be counted
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5", encoding="ascii")  # resets the peak to the current memory (proc(5))
    before = _status_bytes("VmRSS")
    work()
    return _status_bytes("VmHWM") - before


def attempted(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The results of `measure`, or those of `did_not_run`, so that the other benchmarks still run."""
    try:
        return measure()
    except Exception as error:
        return did_not_run(error)


def did_not_run(error: Exception) -> dict[str, Any]:
    """The result of a benchmark that raised an error: its reason in one line, under the key `did_not_run`."""
    _log.debug("did not run", exc_info=error)
    match error:
        case UserError():  # whole, since it ends in the fix
            return {"did_not_run": " ".join(str(error).split())}
        case subprocess.CalledProcessError(returncode=code, stderr=stderr):
            last = "".join(f": {line}" for line in (stderr or "").splitlines()[-1:])
            reason = f"its process ended with code {code} (-9 is often too little memory){last}"
        case _:
            reason = f"{type(error).__name__}: {error}"
    return {"did_not_run": " ".join(reason.split())[:200]}


def _status_bytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024

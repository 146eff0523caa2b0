"""Peak resident memory of a function."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


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


def _status_bytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024

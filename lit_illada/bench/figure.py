"""Measured quantities: a median with minimum and maximum, or the reason why there is none."""

import logging
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

from lit_illada.errors import UserError

Figure = dict[str, float]
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

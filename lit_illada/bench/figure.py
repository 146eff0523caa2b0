"""How is a measured quantity told? As a median with its spread."""

import statistics
import time
from collections.abc import Callable

import torch

Figure = dict[str, float]


def figure(values: list[float]) -> Figure:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def seconds(run: Callable[[], object], device: torch.device | None = None) -> float:
    """Wall-clock seconds of one call. device: where its work is done; None: in this process alone."""
    started_at = now(device)
    run()
    return now(device) - started_at


def now(device: torch.device | None) -> float:
    """The clock, once all that was asked of the device is done: a GPU's work is queued, and calls return before it."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

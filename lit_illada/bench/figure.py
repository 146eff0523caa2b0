"""How is a measured quantity told? As a median with its spread."""

import statistics
import time
from collections.abc import Callable

Figure = dict[str, float]


def figure(values: list[float]) -> Figure:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started_at = time.perf_counter()
    run()
    return time.perf_counter() - started_at

"""Peak speed of a device's matrix products, the denominator of model FLOPs utilisation (MFU)."""

import math
import time

import torch

_LONGEST_S = 1.0


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype, timings: int = 6) -> float:
    """Measure the peak of square matrix products on the device, in FLOP/s: the best of several timings.

    No further timing begins after a second, since a CPU without instructions for a dtype takes seconds for each.
    """
    # large enough that kernel launches on a GPU do not matter
    size, products = (8192, 8) if device.type == "cuda" else (1024, 2)
    a = torch.randn(size, size, generator=torch.Generator(device).manual_seed(0), device=device, dtype=dtype)
    best_s, total_s = math.inf, 0.0
    for _ in range(timings):
        _wait(device)
        started_at = time.perf_counter()
        for _ in range(products):
            a @ a
        _wait(device)
        elapsed_s = time.perf_counter() - started_at
        best_s, total_s = min(best_s, elapsed_s), total_s + elapsed_s
        if total_s > _LONGEST_S:
            break
    return products * 2 * size**3 / best_s


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

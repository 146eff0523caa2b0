"""Memory and time of LM head and cross-entropy, forward and backward: ours against plain.

Sizes of iLLaDA: 8192 tokens (fewer on a slow CPU), vocabulary 155 136, hidden size 4096, in the precision of training
on this CPU. Each way runs in a separate process, and its peak memory is reported minus the memory after importing
torch. Sizes of the small models: both ways alternate.
"""

import json
import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_illada.bench.figure import Figure, attempted, figure
from lit_illada.bench.precision import default_precision
from lit_illada.model.lm_head import token_scores
from lit_illada.runtime.terminal import print_content
from lit_illada.training.matmul_speed import matmul_flops_per_s

SMALL_SIZES = [(700, 4096, 256), (2048, 4096, 256), (2048, 4096, 128)]
"""(selected tokens, vocabulary, hidden size) of the small models' steps."""
_LONGEST_S = 60.0  # about, of one way


def measure(
    num_tokens: int | None = None, vocab_size: int = 155_136, hidden_size: int = 4096
) -> dict[str, dict[str, Any]]:
    """Peak GB, seconds and mean negative log-likelihood (nats/token) of each way. Goal of the chunked way: 6 GB in
    bfloat16 for 8192 tokens.

    num_tokens: None: the largest of 8192, 4096, …, 512 that is estimated to take at most a minute on this CPU.
    If the plain way does not fit in memory, its peak and time are extrapolated linearly from a quarter and a half of
    the tokens, and `is_extrapolated` is true.
    """
    sizes = (vocab_size, hidden_size)
    if num_tokens is None:
        num_tokens = _affordable_tokens(*sizes)
    return {
        "chunked": attempted(lambda: measure_way("chunked", num_tokens, *sizes)),
        "plain": attempted(lambda: _measure_plain(num_tokens, *sizes)),
        **{" × ".join(map(str, small)): attempted(partial(measure_small, *small)) for small in SMALL_SIZES},
    }


def _affordable_tokens(vocab_size: int, hidden_size: int) -> int:
    """8192 tokens, halved until our way takes no longer than `_LONGEST_S`; at least 512."""
    speed = matmul_flops_per_s(torch.device("cpu"), _dtype())
    num_tokens = 8192
    # four products per logit: forward, again in the backward, and two gradients
    while num_tokens > 512 and 4 * 2 * num_tokens * vocab_size * hidden_size / speed > _LONGEST_S:
        num_tokens //= 2
    return num_tokens


def measure_small(num_tokens: int, vocab_size: int, hidden_size: int, repeats: int = 15) -> dict[str, Figure]:
    """Milliseconds of CPU time of ours and plain, alternating, and ours / plain within a repeat. Goal: at most 1."""
    hidden, weight, targets = _inputs(num_tokens, vocab_size, hidden_size)
    rounds = []
    for _ in range(repeats + 1):
        spent_ms = []
        for way in (_chunked, _plain):
            started_at = time.process_time()
            torch.autograd.grad(way(hidden, weight, targets).sum(), (hidden, weight))
            spent_ms.append(1e3 * (time.process_time() - started_at))
        rounds.append(spent_ms)
    ours, plain = zip(*rounds[1:], strict=True)  # the first is the warm-up
    ratios = [one / other for one, other in zip(ours, plain, strict=True)]
    return {"ours_ms": figure(list(ours)), "plain_ms": figure(list(plain)), "ratio": figure(ratios)}


def measure_way(way: str, num_tokens: int, vocab_size: int, hidden_size: int) -> dict[str, Any]:
    """peak_gb (weight and gradients included, torch excluded), elapsed_s and mean nll of one way, in a new process."""
    arguments = [sys.executable, "-m", "lit_illada.bench.loss", way, *map(str, (num_tokens, vocab_size, hidden_size))]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def _measure_plain(num_tokens: int, vocab_size: int, hidden_size: int) -> dict[str, Any]:
    # measured at iLLaDA's size: 11 bytes per logit, besides the weight and its gradient
    needed = 12 * num_tokens * vocab_size + 2 * _dtype().itemsize * vocab_size * hidden_size
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed < 0.9 * available:
        return {**measure_way("plain", num_tokens, vocab_size, hidden_size), "is_extrapolated": False}
    # memory and time are linear in the tokens, apart from the weights
    quarter, half = (measure_way("plain", num_tokens // part, vocab_size, hidden_size) for part in (4, 2))
    line = {key: half[key] + 2 * (half[key] - quarter[key]) for key in ("peak_gb", "elapsed_s")}
    return {"num_tokens": num_tokens, **line, "nll": half["nll"], "is_extrapolated": True}


def _run_here(way: str, num_tokens: int, vocab_size: int, hidden_size: int) -> None:
    before = _peak_bytes()
    hidden, weight, targets = _inputs(num_tokens, vocab_size, hidden_size)
    started_at = time.perf_counter()
    nll = {"chunked": _chunked, "plain": _plain}[way](hidden, weight, targets)
    nll.mean().backward()
    elapsed_s = time.perf_counter() - started_at
    peak_gb = (_peak_bytes() - before) / 1e9
    figures = {"num_tokens": num_tokens, "peak_gb": peak_gb, "elapsed_s": elapsed_s, "nll": nll.mean().item()}
    print_content(json.dumps(figures))


def _inputs(num_tokens: int, vocab_size: int, hidden_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and targets."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.empty(rows, hidden_size, dtype=_dtype()).normal_(0, hidden_size**-0.25, generator=generator)
        for rows in (num_tokens, vocab_size)
    )
    targets = torch.randint(vocab_size, (num_tokens,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def _dtype() -> torch.dtype:
    return default_precision(torch.device("cpu")).dtype


def _chunked(hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor) -> Tensor:
    return token_scores(hidden_MD, weight_VD, targets_M).nll


def _plain(hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden_MD, weight_VD).float(), targets_M, reduction="none")


def _peak_bytes() -> int:
    # On Linux, getrusage's peak starts at that of the parent process; VmHWM does not.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    _run_here(sys.argv[1], *map(int, sys.argv[2:]))

"""Decides whether a run compiles its blocks if the config leaves the choice open."""

import importlib.util
import logging
import os
import shutil

import torch

log = logging.getLogger(__name__)

# Estimates for the choice only. On one CPU core compiled steps took 0.78 to 0.89 of the time, and the set-up 36 s of
# CPU time with an empty cache, 2 to 5 s with a filled one. The other values are guesses, set so that doubtful runs are
# not compiled. Results move by rounding: by 2e-7 nats/token after 300 steps of pico, where another seed moves 0.3.
_SAVED_FRACTION = 0.12
_SETUP_S = {"cpu": 40.0, "cuda": 60.0}
_FLOPS_PER_S = {"cpu": 1e11, "cuda": 4e14}  # of one CPU thread, of one GPU
_MIN_RATIO = 2.0  # of the time saved to the set-up


def is_worth_compiling(device: torch.device, flops: float) -> bool:
    """Whether a compiler is installed and a run of `flops` per device saves twice the set-up; logs the reason."""
    kind = "cuda" if device.type == "cuda" else "cpu"
    threads = torch.get_num_threads() if kind == "cpu" else 1
    saved_s = _SAVED_FRACTION * flops / (_FLOPS_PER_S[kind] * threads)
    is_long = saved_s >= _MIN_RATIO * _SETUP_S[kind]
    missing = _missing_compiler(kind)
    reason = missing or f"it saves about {saved_s:,.0f} s of this run, for {_SETUP_S[kind]:.0f} s of set-up"
    is_compiled = is_long and missing is None
    log.info("the blocks are %s: %s", "compiled" if is_compiled else "not compiled", reason)
    return is_compiled


def _missing_compiler(kind: str) -> str | None:
    """What torch.compile lacks on this machine, or None. Torch's own check takes seconds to import."""
    if kind == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is not installed"
    candidates = [os.environ.get("CXX"), "g++", "clang++"]
    found = any(candidate and shutil.which(candidate.split()[0]) for candidate in candidates)
    return None if found else "there is no C++ compiler (g++, or the one of the environment variable CXX)"

"""Programs of the benchmark `peers` that need no other library."""

import sys
from pathlib import Path

import numpy as np

from lit_illada.bench import peers


def test_peers_alternate_with_ours_and_missing_libraries_are_reported(tmp_path):
    np.save(tmp_path / "tokens.npy", np.zeros(2**16, np.uint16))
    calls = []
    figures = peers._compared(
        Path(sys.executable), tmp_path, lambda: calls.append(1), ["memory_map", "litdata"], 10_000_000, 2
    )
    assert len(calls) == 2
    assert figures["memory_map_tokens_per_s"]["min"] > 0
    assert figures["over_memory_map"]["median"] > 1
    assert figures["litdata"]["did_not_run"].endswith("ModuleNotFoundError: No module named 'litdata'")

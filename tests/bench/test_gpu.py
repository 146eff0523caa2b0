"""The GPU benchmark without a GPU: rejected, or a dry run of the same code on the CPU."""

import json

import pytest
import torch
from click.testing import CliRunner

from lit_illada.bench import gpu
from lit_illada.cli import main
from lit_illada.errors import UserError


def test_dry_run_executes_all_gpu_benchmarks_and_writes_table_and_json(tmp_path):
    file = tmp_path / "bench-gpu.json"
    done = CliRunner().invoke(main, ["bench", "gpu", "--dry-run", "--json", str(file), "--profile", str(tmp_path)])
    assert done.exit_code == 0, done.output
    results = json.loads(file.read_text())["gpu"]
    assert len(results["attention"]) == 4
    for kernels in results["attention"].values():
        assert kernels["sdpa"]["is_right"]
        assert kernels["matmul"]["is_right"]
        assert kernels["sdpa"]["forward_backward_ms"]["median"] > 0
        for name in ("varlen", "flash", "flash4"):
            assert f"model.attention is {name}, which needs" in kernels[name]["did_not_run"]
    runs = [figures for figures in results["step"].values() if "did_not_run" not in figures]
    assert len(runs) >= 3
    assert all(figures["tokens_per_s"]["median"] > 0 for figures in runs)
    assert results["head"]["chunked"]["forward_backward_ms"]["median"] > 0
    assert "not on CUDA" in results["head"]["liger"]["did_not_run"]
    assert results["generation"]["ratio"]["median"] > 0
    assert "gpu.generation" in done.output
    assert list(tmp_path.glob("pico*.txt"))


def test_wrong_kernel_is_reported(monkeypatch):
    right = gpu._outcome

    def outcome(inputs, kernel, layout, is_causal, dtype):
        results = right(inputs, kernel, layout, is_causal, dtype)
        return [*results[:-1], 1.1 * results[-1]] if dtype is torch.bfloat16 else results

    monkeypatch.setattr(gpu, "_outcome", outcome)
    figures = gpu.attention(gpu._DRY, torch.device("cpu"))
    assert not any(kernels["sdpa"]["is_right"] for kernels in figures.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_gpu_is_rejected_with_the_fix():
    with pytest.raises(UserError, match=r"needs a CUDA device.*--dry-run"):
        gpu.measure()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss", "--profile", "x"], "--profile applies to training steps"),
        (["loss", "--dry-run"], "--dry-run applies to the benchmark gpu"),
        (["stepp"], "did you mean"),
    ],
)
def test_incompatible_options_are_rejected(arguments, message):
    done = CliRunner().invoke(main, ["bench", *arguments])
    assert done.exit_code == 1
    assert message in done.output

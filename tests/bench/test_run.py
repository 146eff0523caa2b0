"""The `bench` command when some benchmarks cannot run."""

import json
import sys

import pytest
import torch
from click.testing import CliRunner

from lit_illada.bench import run
from lit_illada.cli import main
from lit_illada.errors import UserError

SPEED = {"speed": {"median": 2.0, "min": 1.0, "max": 3.0}}


def too_large():
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory:\n you tried to allocate 16 GB")


def interrupted():
    raise KeyboardInterrupt


def bench(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


@pytest.fixture
def benches(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def benches(**ways):
        monkeypatch.setattr(run, "BENCHES", ways)

    return benches


def test_failed_benchmark_is_reported_and_others_are_measured(benches, tmp_path):
    benches(loss=too_large, data=lambda: SPEED)
    done = bench("--json", tmp_path / "bench.json")
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "bench.json").read_text())
    cause = "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 16 GB"
    assert figures["loss"] == {"did_not_run": cause}
    assert figures["data"] == SPEED
    assert "loss.did_not_run" in done.output
    assert "data.speed" in done.output


def test_failed_named_benchmark_is_an_error_after_all_others(benches):
    benches(loss=too_large, data=lambda: SPEED)
    done = bench("loss", "data")
    assert done.exit_code == 1
    assert "data.speed" in done.output
    assert "Error: the benchmark 'loss' did not run: RuntimeError: DefaultCPUAllocator" in done.output


def test_figures_before_an_interruption_are_printed(benches, tmp_path):
    benches(data=lambda: SPEED, loss=interrupted, loops=lambda: SPEED)
    done = bench("--json", tmp_path / "bench.json")
    assert done.exit_code == 1
    assert "data.speed" in done.output
    assert json.loads((tmp_path / "bench.json").read_text())["data"] == SPEED


@pytest.mark.slow
def test_process_killed_for_memory_is_reported_with_the_other_way(monkeypatch, tmp_path):
    killed = tmp_path / "python"
    killed.write_text('#!/bin/sh\n[ "$3" = chunked ] && echo \'{"peak_gb": 1}\' && exit\nkill -9 $$\n')
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    figures = run.loss.measure(8, 16, 4)
    assert figures["chunked"] == {"peak_gb": 1}
    assert figures["plain"]["did_not_run"] == "its process ended with code -9 (-9 is often too little memory)"


@pytest.mark.parametrize("names", [[], ["gpu"]])
def test_only_gpu_steps_are_profiled_on_a_gpu(names, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = run._chosen(names, run.AnswersOptions(), tmp_path, False)
    assert "step" not in (names or chosen)
    assert chosen["gpu"].keywords["profile"] == tmp_path


@pytest.mark.parametrize("has_gpu", [False, True])
def test_named_step_benchmark_is_profiled(has_gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert run._chosen(["step"], run.AnswersOptions(), tmp_path, False)["step"].args == (tmp_path,)


def test_step_benchmark_is_profiled_by_default_without_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run._chosen([], run.AnswersOptions(), tmp_path, False)["step"].args == (tmp_path,)
    with pytest.raises(UserError, match="--profile applies to training steps"):
        run._chosen(["data"], run.AnswersOptions(), tmp_path, False)

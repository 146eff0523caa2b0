"""Runs started by torchrun: one run folder per job, and only rank 0 logs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_illada.run_folder import RunFolder
from lit_illada.training.checkpointing.files import latest_checkpoint
from lit_illada.training.checkpointing.reading import read_checkpoint


def started(folder, *overrides):
    """`torchrun --standalone --nproc-per-node 2 -m lit_illada pretrain …` with a folder of its own for its runs/."""
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "lit_illada", "pretrain", *overrides, "trainer.devices=2", "trainer.micro_batch_rows=4"]
    here = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(here)}
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_concurrent_torchrun_jobs_agree_on_a_folder_each_and_log_once(tiny_overrides, tmp_path):
    overrides = [*tiny_overrides, "trainer.max_steps=4"]
    processes = [started(tmp_path / name, *overrides) for name in ("one", "other")]
    outputs = [process.communicate(timeout=500)[0] for process in processes]
    weights = []
    for process, output, name in zip(processes, outputs, ("one", "other"), strict=True):
        assert process.returncode == 0, output
        (path,) = (tmp_path / name / "runs").iterdir()
        assert RunFolder(path).summary.is_file()
        assert output.count("training on cpu × 2") == 1, output
        assert output.count("NLL bound, nats/token") == 1
        weights.append(read_checkpoint(latest_checkpoint(path / "checkpoints"))["state_dict"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

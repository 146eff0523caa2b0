"""A rank that dies or falls silent ends the job: within seconds, by its name, with where its log is."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lit_illada.training.checkpoint import latest_checkpoint

LIMIT_S = 120  # the rank that is left must end long before; a machine under load may take its time
TWO = ["trainer.devices=2", "trainer.micro_batch_rows=4", "trainer.max_steps=100000"]


def start(launcher, *arguments):
    command = [sys.executable, "-m", *launcher, "pretrain", *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ),
        start_new_session=True,
    )


def wait_for_training(run, process):
    end = time.monotonic() + 240
    while latest_checkpoint(run / "checkpoints") is None:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def process_of(run, rank):
    return json.loads((run / "ranks" / f"rank-{rank}.json").read_text())["pid"]


def is_there(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def ended(process):
    """What it printed; nothing of its session is left alive."""
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"still there: {process.communicate()[0]}")
    return output


def test_a_killed_rank_is_named_with_its_log(tiny_overrides, tmp_path):
    run = tmp_path / "run"
    process = start(["lit_illada.cli"], *tiny_overrides, *TWO, f"run_dir={run}")
    wait_for_training(run, process)
    victim = process_of(run, 1)
    os.kill(victim, signal.SIGKILL)
    output = ended(process)
    assert process.returncode == 1
    last = output.rstrip().splitlines()[-1]
    assert last.startswith(f"Error: rank 1 (process {victim} on ")
    assert "was ended by SIGKILL (often for too little memory)" in last
    assert last.endswith(f"its log: {run / 'ranks' / 'rank-1.log'}")
    assert "Traceback" not in output
    # what the surviving rank met lies in its own log
    assert "Traceback" in (run / "ranks" / "rank-0.log").read_text()
    assert f"rank 1 of 2, process {victim}" in (run / "ranks" / "rank-1.log").read_text()


@pytest.mark.slow
def test_the_others_do_not_outlive_the_rank_that_started_them(tiny_overrides, tmp_path):
    run = tmp_path / "run"
    process = start(["lit_illada.cli"], *tiny_overrides, *TWO, f"run_dir={run}")
    wait_for_training(run, process)
    other = process_of(run, 1)
    process.kill()
    output = ended(process)
    end = time.monotonic() + LIMIT_S
    while is_there(other):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert f"Error: rank 0 (process {process.pid} on " in output
    assert "was killed or crashed" in output


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_of_torchrun_that_is_killed_is_named(victim, tiny_overrides, tmp_path):
    run = tmp_path / "run"
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "lit_illada.cli"]
    process = start(launcher, *tiny_overrides, *TWO, f"run_dir={run}")
    wait_for_training(run, process)
    os.kill(process_of(run, victim), signal.SIGKILL)
    output = ended(process)
    assert process.returncode == 1
    assert f"Error: rank {victim} (process " in output
    assert f"its log: {run / 'ranks' / f'rank-{victim}.log'}" in output


@pytest.mark.slow
def test_a_rank_that_falls_silent_ends_the_job_at_the_time_out(tiny_overrides, tmp_path):
    run = tmp_path / "run"
    process = start(["lit_illada.cli"], *tiny_overrides, *TWO, f"run_dir={run}", "trainer.timeout_s=30")
    wait_for_training(run, process)
    silent = process_of(run, 1)
    os.kill(silent, signal.SIGSTOP)
    output = ended(process)
    assert process.returncode == 1
    last = output.rstrip().splitlines()[-1]
    assert last.startswith("Error: the ranks have not met for trainer.timeout_s=30 seconds: rank 0 is at step ")
    assert not is_there(silent)

"""A dead or silent rank ends the job within seconds, with an error that names it and its log."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from lit_illada.training.callbacks import stopping
from lit_illada.training.callbacks.stopping import GracefulStop
from lit_illada.training.checkpointing.files import latest_checkpoint
from lit_illada.training.distributed import rank_watch as ranks

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


def output_after(number, run, process):
    """Send a signal to rank 1; its process id, and what the failing job printed."""
    rank_1 = process_of(run, 1)
    os.kill(rank_1, number)
    output = ended(process)
    assert process.returncode == 1
    return rank_1, output


@pytest.mark.slow
def test_a_killed_rank_is_named_with_its_log(tiny_overrides, tmp_path):
    run = tmp_path / "run"
    process = start(["lit_illada.cli"], *tiny_overrides, *TWO, f"run_dir={run}")
    wait_for_training(run, process)
    victim, output = output_after(signal.SIGKILL, run, process)
    last = output.rstrip().splitlines()[-1]
    assert last.startswith(f"Error: rank 1 (process {victim} on ")
    assert "was ended by SIGKILL (often because memory ran out)" in last
    assert last.endswith(f"its log: {run / 'ranks' / 'rank-1.log'}")
    assert "Traceback" not in output
    # what the surviving rank met lies in its own log
    assert "Traceback" in (run / "ranks" / "rank-0.log").read_text()
    assert f"rank 1 of 2, process {victim}" in (run / "ranks" / "rank-1.log").read_text()


@pytest.fixture
def watched(tmp_path):
    """A watch of rank 0 whose other rank, this process as well, lives: (watch, trainer)."""
    state = {"pid": os.getpid(), "host": socket.gethostname(), "step": 0, "renewed_at": 1.5, "ended": None}
    (tmp_path / "rank-1.json").write_text(json.dumps(state))
    strategy = SimpleNamespace(barrier=lambda name: None)
    return ranks.RankWatch(tmp_path, timeout_s=60), SimpleNamespace(world_size=2, global_rank=0, strategy=strategy)


def test_a_signal_before_the_first_step_is_handled_by_graceful_stop(watched):
    watch, trainer = watched
    stop = GracefulStop()
    with stop.handle_signals():
        with watch:
            watch.setup(trainer, None, "fit")
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signal is signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == stop._on_signal


def test_an_interrupted_rank_records_its_end_for_the_others(watched, tmp_path):
    watch, trainer = watched
    watch.setup(trainer, None, "fit")
    watch.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    other = ranks.RankWatch(tmp_path, timeout_s=60)
    other._rank, other._world_size = 1, 2
    assert f"rank 0 (process {os.getpid()} on {socket.gethostname()}) ended: was interrupted" in other._find_dead()


def test_a_loader_process_ignores_signals(monkeypatch):
    """A forked loader inherits the run's handlers and must not log a stop."""
    stop, warnings = GracefulStop(), []
    monkeypatch.setattr(stopping.log, "warning", lambda *words: warnings.append(words))
    pid = os.fork()
    if pid == 0:
        stop._on_signal(signal.SIGTERM, None)
        os._exit(0 if stop.signal is None and not warnings else 1)
    assert os.waitpid(pid, 0)[1] == 0
    stop._on_signal(signal.SIGTERM, None)
    assert (stop.signal, len(warnings)) == (signal.SIGTERM, 1)


TERMINATED = """
import os, signal, sys
from lit_illada.commands import training_run
from lit_illada.cli import main

honest = training_run.append_summary

def terminated(*arguments):
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.kill(os.getpid(), signal.SIGTERM)
    honest(*arguments)

training_run.append_summary = terminated
main()
"""


@pytest.mark.slow
def test_a_signal_to_one_rank_before_the_first_step_stops_both_after_it(tiny_overrides, tmp_path):
    run, script = tmp_path / "run", tmp_path / "terminated.py"
    script.write_text(TERMINATED)
    process = subprocess.Popen(
        [sys.executable, str(script), "pretrain", *tiny_overrides, *TWO, f"run_dir={run}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ),
        start_new_session=True,
    )
    output = ended(process)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert latest_checkpoint(run / "checkpoints").name == "step=00000001.ckpt"


ELSEWHERE = {"pid": 41, "host": "another machine", "step": 7, "renewed_at": 1.5, "ended": None}


@pytest.mark.parametrize("state", [ELSEWHERE, None])
def test_a_silent_rank_on_another_machine_ends_this_one(state, tmp_path, monkeypatch, capsys):
    """Also one whose state never appears."""
    left = []
    monkeypatch.setattr(ranks, "_EVERY_S", 0.05)
    monkeypatch.setattr(ranks, "_GRACE_S", 0.1)
    monkeypatch.setattr(ranks, "_SILENT_S", 1.5)
    monkeypatch.setattr(ranks.os, "_exit", left.append)
    if state is not None:
        (tmp_path / "rank-1.json").write_text(json.dumps(state))
    strategy = SimpleNamespace(barrier=lambda name: None)
    trainer = SimpleNamespace(world_size=2, global_rank=0, strategy=strategy)
    with ranks.RankWatch(tmp_path, timeout_s=60) as watch:
        watch.setup(trainer, None, "fit")
        for renewed_at in range(20 if state else 0):  # for longer than it may be silent
            (tmp_path / "next").write_text(json.dumps({**state, "renewed_at": renewed_at + 0.5}))
            (tmp_path / "next").replace(tmp_path / "rank-1.json")
            time.sleep(0.1)
            assert not left
        end = time.monotonic() + 30
        while not left:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert left[0] == 1
    output = capsys.readouterr().err
    who = (
        "Error: rank 1 has not renewed its state"
        if state is None
        else "rank 1 (process 41 on another machine) has not renewed its state"
    )
    assert who in output
    assert ("never seen" if state is None else "last seen at step 7") in output
    assert f"its log: {tmp_path / 'rank-1.log'}" in output


@pytest.mark.slow
def test_ranks_end_with_the_rank_that_started_them(tiny_overrides, tmp_path):
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
def test_a_silent_rank_ends_the_job_at_the_timeout(tiny_overrides, tmp_path):
    run = tmp_path / "run"
    process = start(["lit_illada.cli"], *tiny_overrides, *TWO, f"run_dir={run}", "trainer.timeout_s=30")
    wait_for_training(run, process)
    silent, output = output_after(signal.SIGSTOP, run, process)
    last = output.rstrip().splitlines()[-1]
    assert last.startswith("Error: a collective timed out after trainer.timeout_s=30 seconds: rank 0 is at step ")
    assert not is_there(silent)

"""The pool: kills, failures, signals, shared folders and slots."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lit_illada.sweep.folder import RunState
from lit_illada.sweep.pool import Pool, Slot, StopSignals, cpu_slots, gpu_slots

POOL = """
import sys
from pathlib import Path
from lit_illada.sweep.folder import SweepFolder
from lit_illada.sweep.pool import Pool, cpu_slots

folder = SweepFolder(Path(sys.argv[1]))
pool = Pool(folder, folder.read_plan(), cpu_slots(2, 1), lambda statuses: None, "score", sys.argv[2:])
pool.run()
raise SystemExit(130 if pool.was_stopped else 0)
"""


@pytest.fixture
def pool(tmp_path):
    """Start a pool on a folder in a separate process."""
    script = tmp_path / "pool.py"
    script.write_text(textwrap.dedent(POOL), encoding="utf-8")
    return lambda folder, command: subprocess.Popen([sys.executable, str(script), str(folder.path), *command])


def run_here(folder, command, slots=None):
    runs = folder.read_plan()
    return Pool(folder, runs, slots or cpu_slots(2, 1), lambda statuses: None, "score", command).run()


def steps_of(folder, run):
    """All executed steps in order of execution."""
    lines = (folder.run_folder(run).path / "steps.txt").read_text().splitlines()
    return [int(line.split()[0]) for line in lines]


def wait_for(condition, limit_s=30):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def is_in_progress(folder, run):
    """Whether a process executes the run, which has done a step."""
    return folder.state_of(run) is RunState.RUNNING and (folder.run_folder(run).path / "steps.txt").exists()


def test_every_run_is_executed_once_after_its_parent(written, planned, worker):
    runs = [planned("a"), planned("b", "a"), planned("c", "b"), planned("d")]
    folder = written(*runs)
    statuses = run_here(folder, worker())
    assert [status.state for status in statuses] == [RunState.FINISHED] * 4
    assert [status.metric for status in statuses] == [1.0] * 4
    assert all(steps_of(folder, run) == [1, 2, 3] for run in runs)
    order = [folder.run_folder(run).done.stat().st_mtime_ns for run in runs[:3]]
    assert order == sorted(order)
    run_here(folder, worker())
    assert all(steps_of(folder, run) == [1, 2, 3] for run in runs), "a second call did something again"


def test_failure_stops_only_its_descendants(written, planned, worker):
    runs = [planned("fail"), planned("child", "fail"), planned("grandchild", "child"), planned("other")]
    folder = written(*runs)
    states = {status.run.id: status for status in run_here(folder, worker())}
    assert states["fail"].state is RunState.FAILED
    assert states["fail"].last_lines[-1] == "what went wrong"
    assert states["other"].state is RunState.FINISHED
    assert (states["child"].state, states["child"].waits_for) == (RunState.PENDING, "fail")
    assert states["grandchild"].waits_for == "fail"
    assert len(folder.run_folder(runs[0]).read_attempts()) == 1
    run_here(folder, worker())  # a further call tries it once more, and once only
    assert len(folder.run_folder(runs[0]).read_attempts()) == 2


def test_runs_have_separate_cores_and_threads(written, planned, worker):
    cores = sorted(os.sched_getaffinity(0))
    runs = [planned(f"r{n}") for n in range(4)]
    folder = written(*runs)
    run_here(folder, worker(), cpu_slots(min(2, len(cores)), 1))
    for run in runs:
        line = (folder.run_folder(run).path / "steps.txt").read_text().splitlines()[0]
        assert line.split(maxsplit=2)[2] in {f"[{core}] 1" for core in cores[:2]}


def test_killed_run_has_failed_and_the_others_continue(written, planned, worker):
    runs = [planned("a", num_steps=200), planned("b", num_steps=200)]
    folder = written(*runs)
    killed = []

    def show(statuses):
        if not killed and all((folder.run_folder(run).path / "steps.txt").exists() for run in runs):
            killed.append(int((folder.run_folder(runs[0]).path / "steps.txt").read_text().split()[1]))
            os.kill(killed[0], signal.SIGKILL)

    states = Pool(folder, runs, cpu_slots(2, 1), show, "score", worker(steps=200)).run()
    assert [status.state for status in states] == [RunState.FAILED, RunState.FINISHED]
    assert '"exit_status": -9' in folder.run_folder(runs[0]).failed.read_text()


def test_random_kills_do_not_change_the_result(written, planned, worker, pool):
    rng = random.Random(1)
    runs = [planned(f"p{n}", num_steps=12) for n in range(3)]
    runs += [planned(f"c{n}", f"p{n % 3}", num_steps=12) for n in range(5)]
    folder = written(*runs)
    command = worker(steps=12, seconds=0.02)
    for _ in range(4):
        process = pool(folder, command)
        wait_for(lambda: any(is_in_progress(folder, run) for run in runs))
        time.sleep(rng.uniform(0.0, 0.1))
        process.kill()
        process.wait()
        alive = [run for run in runs if folder.state_of(run) is RunState.RUNNING]
        for run in alive[::2]:  # the others live on without a pool, and are waited for
            steps = folder.run_folder(run).path / "steps.txt"
            if steps.exists():
                os.kill(int(steps.read_text().splitlines()[-1].split()[1]), signal.SIGKILL)
    statuses = run_here(folder, command)
    assert [status.state for status in statuses] == [RunState.FINISHED] * len(runs)
    assert all(sorted(set(steps_of(folder, run))) == list(range(1, 13)) for run in runs)
    assert sum(len(folder.run_folder(run).read_attempts()) for run in runs) > len(runs), "no kill hit a run"


def test_two_pools_on_one_folder_share_its_runs(written, planned, worker, pool):
    runs = [planned(f"r{n}") for n in range(8)]
    folder = written(*runs)
    command = worker(steps=3, seconds=0.05)
    pools = [pool(folder, command) for _ in range(2)]
    assert [process.wait(60) for process in pools] == [0, 0]
    assert all(folder.state_of(run) is RunState.FINISHED for run in runs)
    assert all(steps_of(folder, run) == [1, 2, 3] for run in runs)
    assert all(len(folder.run_folder(run).read_attempts()) == 1 for run in runs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_the_runs_and_then_the_pool(written, planned, worker, pool, number):
    runs = [planned(f"r{n}", num_steps=1000) for n in range(3)]
    folder = written(*runs)
    process = pool(folder, worker(steps=1000))
    wait_for(lambda: sum(folder.state_of(run) is RunState.RUNNING for run in runs) == 2)
    process.send_signal(number)
    assert process.wait(30) == 130
    states = [folder.state_of(run) for run in runs]
    assert sorted(states) == sorted([RunState.INTERRUPTED, RunState.INTERRUPTED, RunState.PENDING])


def test_second_signal_kills_runs_without_marking_them_failed(written, planned, worker, pool):
    run = planned("r", num_steps=1000)
    folder = written(run)
    command = worker(steps=1000)
    script = Path(command[1])
    script.write_text(f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{script.read_text()}")
    process = pool(folder, command)
    wait_for(lambda: folder.state_of(run) is RunState.RUNNING)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert folder.state_of(run) is RunState.RUNNING
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert folder.state_of(run) is RunState.INTERRUPTED


@pytest.mark.slow
def test_equal_runs_keep_two_cores_busy(written, planned, worker):
    runs = [planned(f"r{n}", num_steps=10) for n in range(8)]
    folder = written(*runs)
    run_here(folder, worker(steps=10, seconds=1.0))
    spans = []
    for run in runs:
        run_folder = folder.run_folder(run)
        spans.append((float((run_folder.path / "began.txt").read_text()), run_folder.done.stat().st_mtime))
    total = max(end for _, end in spans) - min(start for start, _ in spans)
    busy = sum(end - start for start, end in spans) / (2 * total)
    assert busy >= 0.95, busy


def test_an_exception_stops_the_runs(written, planned, worker):
    runs = [planned("a", num_steps=500), planned("b", num_steps=500)]
    folder = written(*runs)

    def show(statuses):
        if all(is_in_progress(folder, run) for run in runs):
            raise OSError("the terminal has closed")

    with pytest.raises(OSError, match="the terminal has closed"):
        Pool(folder, runs, cpu_slots(2, 1), show, "score", worker(steps=500)).run()
    wait_for(lambda: all(folder.state_of(run) is RunState.INTERRUPTED for run in runs))


def test_a_sweep_under_nohup_ignores_the_end_of_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopSignals(signal.SIGTERM, signal.SIGHUP)
        with stop.handled():
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.count == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.count == 1
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_slots_divide_cores_and_group_gpus():
    cores = sorted(os.sched_getaffinity(0))
    assert [slot.cpus for slot in cpu_slots(2, 1)] == [(cores[0],), (cores[1 % len(cores)],)]
    assert [slot.gpus for slot in gpu_slots(["0", "1", "2", "3", "4"], 2, 1)] == [("0", "1"), ("2", "3")]
    assert Slot((0,)).gpus is None

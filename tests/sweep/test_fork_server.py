"""Forked runs behave like runs that are started separately: kills, failures, signals, logs and cores."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_illada.sweep.folder import RunState
from lit_illada.sweep.fork_server import ForkedRun
from lit_illada.sweep.pool import Pool, cpu_slots

SERVER = """
import sys
from lit_illada.sweep.fork_server import serve
if (request := serve()) is None:
    raise SystemExit(0)
sys.argv[1:] = [request.folder, request.id]
"""
POOL = """
import sys
from pathlib import Path
from lit_illada.sweep.folder import SweepFolder
from lit_illada.sweep.pool import Pool, cpu_slots

folder = SweepFolder(Path(sys.argv[1]))
pool = Pool(folder, folder.read_plan(), cpu_slots(2, 1), lambda statuses: None, "score", ["false"], sys.argv[2:])
pool.run()
raise SystemExit(130 if pool.was_stopped else 0)
"""


@pytest.fixture
def server(worker, tmp_path, monkeypatch):
    """Command of a server whose forks do what the command of `worker` does."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")

    def server(before="", **settings):
        program, script = worker(**settings)
        file = tmp_path / "server.py"
        file.write_text(textwrap.dedent(SERVER) + before + Path(script).read_text())
        return [program, str(file)]

    return server


def run_here(folder, server, command=("false",), show=lambda statuses: None):
    """Execute with a server; `command`, for runs that the server does not start, fails."""
    return Pool(folder, folder.read_plan(), cpu_slots(2, 1), show, "score", command, server).run()


def steps_of(folder, run):
    lines = (folder.run_folder(run).path / "steps.txt").read_text().splitlines()
    return [int(line.split()[0]) for line in lines]


def wait_for(condition, limit_s=30):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def first_line(folder, run):
    return (folder.run_folder(run).path / "steps.txt").read_text().splitlines()[0].split(maxsplit=2)


def test_runs_are_forked_with_their_own_cores_and_logs(written, planned, server):
    runs = [planned("fail"), planned("child", "fail"), *(planned(f"r{n}") for n in range(4))]
    folder = written(*runs)
    statuses = run_here(folder, server())
    assert [status.state for status in statuses] == [RunState.FAILED, RunState.PENDING, *[RunState.FINISHED] * 4]
    assert statuses[0].last_lines[-1] == "what went wrong"
    cores = sorted(os.sched_getaffinity(0))
    assert {first_line(folder, run)[2] for run in runs[2:]} <= {f"[{core}] 1" for core in cores[:2]}
    assert len({first_line(folder, run)[1] for run in runs[2:]}) == 4
    assert all("=== " in folder.run_folder(run).log.read_text() for run in runs[2:])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash_costs_one_run(written, planned, server, number):
    runs = [planned(f"r{n}", num_steps=20) for n in range(4)]
    folder = written(*runs)
    killed = []

    def show(statuses):
        if not killed and (folder.run_folder(runs[0]).path / "steps.txt").exists():
            killed.append(int(first_line(folder, runs[0])[1]))
            os.kill(killed[0], number)

    states = [status.state for status in run_here(folder, server(steps=20, seconds=0.1), show=show)]
    assert states == [RunState.FAILED, *[RunState.FINISHED] * 3]
    assert f'"exit_status": {-number}' in folder.run_folder(runs[0]).failed.read_text()


def test_a_signal_to_a_run_that_has_just_ended_is_no_error():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    server = SimpleNamespace(status_of=lambda pid: None)  # it has not reported the end yet
    ForkedRun(server, ended.pid).terminate()


def test_runs_are_started_separately_once_the_server_has_died(written, planned, server, worker):
    runs = [planned(f"r{n}", num_steps=10) for n in range(5)]
    folder = written(*runs)
    command, plain = server(steps=10, seconds=0.1), worker(steps=10, seconds=0.1)
    parents = []

    def show(statuses):
        for run in runs[:2]:  # the last runs are not forked
            if not parents and (folder.run_folder(run).path / "steps.txt").exists():
                with suppress(FileNotFoundError, IndexError):  # a run that has ended, or has not begun a line
                    pid = int(first_line(folder, run)[1])
                    parents.append(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]))
                    os.kill(parents[0], signal.SIGKILL)

    statuses = run_here(folder, command, plain, show)
    assert parents
    assert [status.state for status in statuses] == [RunState.FINISHED] * 5
    assert all(steps_of(folder, run) == list(range(1, 11)) for run in runs)


def test_runs_are_started_separately_if_the_server_cannot_start(written, planned, worker):
    runs = [planned(f"r{n}") for n in range(3)]
    folder = written(*runs)
    statuses = run_here(folder, ["false"], worker())
    assert [status.state for status in statuses] == [RunState.FINISHED] * 3


@pytest.mark.parametrize("is_stubborn", [False, True])
def test_signals_stop_the_runs_and_then_the_pool(written, planned, server, tmp_path, is_stubborn):
    runs = [planned(f"r{n}", num_steps=1000) for n in range(3)]
    folder = written(*runs)
    before = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if is_stubborn else ""
    script = tmp_path / "pool.py"
    script.write_text(POOL, encoding="utf-8")
    command = server(before, steps=1000)
    process = subprocess.Popen([sys.executable, str(script), str(folder.path), *command])
    wait_for(lambda: sum((folder.run_folder(run).path / "steps.txt").exists() for run in runs) == 2)
    process.send_signal(signal.SIGINT)
    if is_stubborn:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    states = [folder.state_of(run) for run in runs]
    assert sorted(states) == sorted([RunState.INTERRUPTED, RunState.INTERRUPTED, RunState.PENDING])


def test_runs_of_a_killed_pool_go_on(written, planned, server, worker, tmp_path):
    runs = [planned(f"r{n}", num_steps=30) for n in range(3)]
    folder = written(*runs)
    script = tmp_path / "pool.py"
    script.write_text(POOL, encoding="utf-8")
    command = server(steps=30, seconds=0.05)
    process = subprocess.Popen([sys.executable, str(script), str(folder.path), *command])
    wait_for(lambda: sum(folder.state_of(run) is RunState.RUNNING for run in runs) == 2)
    process.kill()
    process.wait()
    wait_for(lambda: sum(folder.state_of(run) is RunState.FINISHED for run in runs) == 2)
    statuses = run_here(folder, command, worker(steps=30))  # one run is left: no server
    assert [status.state for status in statuses] == [RunState.FINISHED] * 3
    assert all(steps_of(folder, run) == list(range(1, 31)) for run in runs)

"""Sweeps as job arrays on a real Slurm cluster: requeueing, preemption, cancellation."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.slurm.client import queued_jobs
from lit_illada.sweep.folder import RunState, SweepFolder, read_record
from lit_illada.sweep.slurm import SlurmOptions, SlurmQueue, _machines

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

QUEUE = """
import sys
from pathlib import Path
from lit_illada.sweep.folder import SweepFolder
from lit_illada.sweep.slurm import SlurmOptions, SlurmQueue

folder = SweepFolder(Path(sys.argv[1]))
queue = SlurmQueue(folder, folder.read_plan(), SlurmOptions(), lambda statuses: None, "score", sys.argv[2:], 0.3)
queue.run()
raise SystemExit(130 if queue.was_stopped else 0)
"""


def run_here(folder, command, show=lambda statuses: None):
    return SlurmQueue(folder, folder.read_plan(), SlurmOptions(), show, "score", command, look_s=0.3, gone_s=1.0).run()


def lines_of(folder, run):
    return [line.split() for line in (folder.run_folder(run).path / "steps.txt").read_text().splitlines()]


def steps_of(folder, run):
    return [int(line[0]) for line in lines_of(folder, run)]


def wait_for(condition, limit_s=60):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def has_steps(folder, run):
    return (folder.run_folder(run).path / "steps.txt").exists()


def test_plan_is_submitted_as_arrays_parents_first(written, planned, worker):
    runs = [planned("a"), planned("b"), planned("fail"), planned("c", "a"), planned("d", "fail")]
    folder = written(*runs)
    statuses = {status.run.id: status for status in run_here(folder, worker())}
    assert [statuses[id].state for id in "abc"] == [RunState.FINISHED] * 3
    assert statuses["fail"].state is RunState.FAILED
    assert statuses["fail"].last_lines[-1] == "what went wrong"
    assert statuses["d"].waits_for == "fail"
    assert all(steps_of(folder, run) == [1, 2, 3] for run in (runs[0], runs[1], runs[3]))
    jobs = [read_record(folder.run_folder(run).path / "job.json")["job_id"] for run in runs[:4]]
    assert len({job.split("_")[0] for job in jobs[:3]}) == 1, "one array for what can begin at once"
    assert jobs[3].split("_")[0] != jobs[0].split("_")[0]


def test_requeued_run_resumes(written, planned, worker):
    run = planned("a", num_steps=40)
    folder = written(run)
    requests = []

    def show(statuses):
        if not requests and has_steps(folder, run):
            job = read_record(folder.run_folder(run).path / "job.json")["job_id"]
            requests.append(subprocess.run(["scontrol", "requeue", job], check=True))

    (status,) = run_here(folder, worker(steps=40, seconds=0.5), show)
    assert (requests != [], status.state) == (True, RunState.FINISHED)
    assert steps_of(folder, run) == list(range(1, 41))
    assert len(folder.run_folder(run).read_attempts()) == 2


def test_run_saves_and_is_requeued_at_the_time_limit(written, planned, worker):
    run = planned("a", num_steps=40)
    folder = written(run)
    requests = []

    def show(statuses):
        if not requests and has_steps(folder, run):
            job = read_record(folder.run_folder(run).path / "job.json")["job_id"]
            requests.append(subprocess.run(["scancel", "--signal=USR2", job], check=True))

    (status,) = run_here(folder, worker(steps=40, seconds=0.5), show)
    assert (requests != [], status.state) == (True, RunState.FINISHED)
    assert steps_of(folder, run) == list(range(1, 41))


def test_preempted_run_resumes(written, planned, worker):
    runs = [planned(f"r{n}", num_steps=30) for n in range(4)]
    folder = written(*runs)
    urgent = []

    def show(statuses):
        if not urgent and all(has_steps(folder, run) for run in runs):
            command = ["sbatch", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"]
            urgent.append(subprocess.run(command, check=True, capture_output=True))

    statuses = run_here(folder, worker(steps=30, seconds=0.3), show)
    assert urgent
    assert [status.state for status in statuses] == [RunState.FINISHED] * 4
    assert all(steps_of(folder, run) == list(range(1, 31)) for run in runs)
    assert sum(len(folder.run_folder(run).read_attempts()) for run in runs) > 4


@pytest.mark.parametrize("others", [[], ["b"]], ids=["the-only-one", "beside-another"])
def test_cancelled_job_is_a_failed_run(written, planned, worker, others):
    runs = [planned(name, num_steps=200) for name in ["a", *others]]
    folder = written(*runs)

    def show(statuses):
        if has_steps(folder, runs[0]) and folder.state_of(runs[0]) is RunState.RUNNING:
            job = read_record(folder.run_folder(runs[0]).path / "job.json")["job_id"]
            subprocess.run(["scancel", job], check=True)

    states = [status.state for status in run_here(folder, worker(steps=200, seconds=0.05), show)]
    assert states == [RunState.FAILED, *[RunState.FINISHED] * len(others)]


def test_restarted_sweep_adopts_the_jobs_of_a_killed_one(written, planned, worker, tmp_path):
    runs = [planned(f"r{n}", num_steps=20) for n in range(6)]
    folder = written(*runs)
    script = tmp_path / "cluster.py"
    script.write_text(textwrap.dedent(QUEUE), encoding="utf-8")
    command = worker(steps=20, seconds=0.2)
    first = subprocess.Popen([sys.executable, str(script), str(folder.path), *command])
    wait_for(lambda: any(has_steps(folder, run) for run in runs))
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert [status.state for status in run_here(folder, command)] == [RunState.FINISHED] * 6
    assert all(steps_of(folder, run) == list(range(1, 21)) for run in runs)
    assert all(len(folder.run_folder(run).read_attempts()) == 1 for run in runs)


def test_ctrl_c_cancels_the_jobs(written, planned, worker, tmp_path):
    runs = [planned(f"r{n}", num_steps=1000) for n in range(2)]
    folder = written(*runs)
    script = tmp_path / "cluster.py"
    script.write_text(textwrap.dedent(QUEUE), encoding="utf-8")
    process = subprocess.Popen([sys.executable, str(script), str(folder.path), *worker(steps=1000, seconds=0.1)])
    wait_for(lambda: all(has_steps(folder, run) for run in runs))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not queued_jobs()
    assert [folder.state_of(run) for run in runs] == [RunState.INTERRUPTED] * 2


def test_run_on_two_nodes_trains_on_both(tiny_sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # the nodes of this Slurm have no addresses
    monkeypatch.setenv("MASTER_PORT", "29417")
    both = ["trainer.num_nodes=2", "trainer.micro_batch_rows=4"]
    arms = [{"name": "slow", "overrides": {"pretrain": both}}]
    file, folder = tiny_sweep(arms=arms), tmp_path / "sweep"
    result = CliRunner().invoke(main, ["sweep", "run", str(file), "--folder", str(folder), "--slurm"])
    log = "".join(path.read_text() for path in Path(folder).glob("runs/*/log.txt"))
    assert result.exit_code == 0, result.output + log
    (run,) = SweepFolder(folder).read_plan()
    assert SweepFolder(folder).state_of(run) is RunState.FINISHED
    assert "cpu × 2" in log


def test_one_task_per_device_and_gpus_only_on_request(planned):
    run = planned("a", config={"trainer": {"devices": 8, "num_nodes": 2, "accelerator": "gpu"}})
    assert _machines(run, SlurmOptions(cpus=4)) == {
        "nodes": 2, "tasks_per_node": 8, "cpus_per_task": 4, "gpus_per_node": 8,
    }  # fmt: skip
    assert "gpus_per_node" not in _machines(planned("b"), SlurmOptions())
    assert os.environ.get("SLURM_JOB_ID") is None

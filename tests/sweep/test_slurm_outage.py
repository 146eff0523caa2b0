"""Outages of the Slurm controller and slow file systems, with stand-ins for the programs of Slurm."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from lit_illada.errors import UserError
from lit_illada.sweep.folder import RunState
from lit_illada.sweep.slurm import SlurmOptions, SlurmQueue

pytest.importorskip("submitit")
DOWN = "Unable to contact slurm controller (connect failure)"


@dataclass(frozen=True)
class FakeSlurm:
    """Jobs stay queued until removed from `queue`; a program with a file of its name in `down` fails."""

    folder: Path

    @property
    def queue(self):
        return self.folder / "queue"

    def install(self):
        (self.folder / "bin").mkdir()
        (self.folder / "down").mkdir()
        self.queue.touch()
        bodies = {
            "srun": "exit 1",  # submitit only looks whether it is there
            "squeue": f"cat {self.queue}",
            "sbatch": f'echo 17 >>{self.queue}; echo "Submitted batch job 17"',
            "scancel": f"echo cancelled >>{self.folder}/cancelled; : >{self.queue}",
        }
        for name, body in bodies.items():
            program = self.folder / "bin" / name
            fail = f"echo '{name}: error: {DOWN}' >&2; exit 1"
            program.write_text(f"#!/bin/bash\nif [ -e {self.folder}/down/{name} ]; then {fail}; fi\n{body}\n")
            program.chmod(0o755)

    def takes_down(self, name):
        (self.folder / "down" / name).touch()

    def brings_back(self, name):
        (self.folder / "down" / name).unlink()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    slurm = FakeSlurm(tmp_path / "slurm")
    slurm.folder.mkdir()
    slurm.install()
    monkeypatch.setenv("PATH", f"{slurm.folder / 'bin'}:{os.environ['PATH']}")
    return slurm


def queue_of(folder, *turns, **options):
    """A queue; `turns` are called one by one, each time the statuses are shown."""
    left = iter(turns)
    show = lambda statuses: next(left, lambda: None)()  # noqa: E731
    return SlurmQueue(folder, folder.read_plan(), SlurmOptions(), show, "score", ["true"], look_s=0.01, **options)


def nothing():
    pass


def finishes(folder, run, slurm):
    """The run finishes and its job leaves the queue."""

    def finish():
        run_folder = folder.run_folder(run)
        run_folder.path.mkdir(parents=True, exist_ok=True)
        run_folder.done.write_text(json.dumps({"attempts": 1, "elapsed_s": 1.0, "max_rss_bytes": 1}))
        slurm.queue.write_text("")

    return finish


def test_restart_of_the_controller_is_logged_once_and_tolerated(slurm, written, planned, caplog):
    run = planned("a")
    folder = written(run)

    def back():
        slurm.brings_back("squeue")
        finishes(folder, run, slurm)()

    queue = queue_of(folder, nothing, lambda: slurm.takes_down("squeue"), nothing, nothing, back)
    assert [status.state for status in queue.run()] == [RunState.FINISHED]
    assert caplog.text.count(f"squeue failed: squeue: error: {DOWN}; retrying for up to 10 minutes") == 1


def test_long_outage_is_a_one_line_error(slurm, written, planned):
    folder = written(planned("a"))
    queue = queue_of(folder, nothing, lambda: slurm.takes_down("squeue"), outage_s=0.1)
    with pytest.raises(UserError, match="Unable to contact"):
        queue.run()
    with pytest.raises(UserError, match="Unable to contact"):  # Slurm must respond at the start
        queue_of(folder)


def test_ctrl_c_waits_for_the_controller_and_a_second_one_does_not(slurm, written, planned):
    folder = written(planned("a"))
    interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    away = lambda: slurm.takes_down("squeue")  # noqa: E731
    queue = queue_of(folder, nothing, away, interrupt, nothing, lambda: slurm.brings_back("squeue"))
    assert [status.state for status in queue.run()] == [RunState.PENDING]
    assert queue.was_stopped
    assert (slurm.folder / "cancelled").read_text() == "cancelled\n"
    slurm.queue.write_text("17\n")
    with pytest.raises(UserError, match="the jobs of the sweep were not cancelled"):
        queue_of(folder, nothing, away, interrupt, interrupt).run()


def test_failed_cancellation_is_repeated(slurm, written, planned):
    folder = written(planned("a"))

    def interrupt():
        slurm.takes_down("scancel")
        os.kill(os.getpid(), signal.SIGINT)

    queue = queue_of(folder, nothing, interrupt)
    honest = queue._queued

    def counted():
        calls.append(None)
        if len(calls) == 5:
            slurm.brings_back("scancel")
        return honest()

    calls = []
    queue._queued = counted
    queue.run()
    assert (slurm.folder / "cancelled").read_text() == "cancelled\n"


def test_rejected_first_submission_is_a_one_line_error(slurm, written, planned):
    slurm.takes_down("sbatch")
    with pytest.raises(UserError, match=f"^sbatch failed: .*{DOWN[:20]}") as refused:
        queue_of(written(planned("a"))).run()
    assert "\n" not in str(refused.value)


def test_rejected_later_submission_is_repeated(slurm, written, planned, caplog):
    first, second = planned("a"), planned("b", "a")
    folder = written(first, second)

    def away():
        slurm.takes_down("sbatch")
        finishes(folder, first, slurm)()

    turns = [nothing, away, nothing, nothing, lambda: slurm.brings_back("sbatch"), finishes(folder, second, slurm)]
    queue = queue_of(folder, *turns)
    assert [status.state for status in queue.run()] == [RunState.FINISHED] * 2
    assert caplog.text.count("sbatch failed") == 1


def test_delayed_record_is_awaited(slurm, written, planned):
    run = planned("a")
    folder = written(run)
    leaves = lambda: slurm.queue.write_text("")  # noqa: E731
    queue = queue_of(folder, nothing, leaves, nothing, nothing, nothing, finishes(folder, run, slurm))
    assert [status.state for status in queue.run()] == [RunState.FINISHED]
    assert not folder.run_folder(run).failed.exists()


def test_job_that_left_the_queue_without_a_record_has_failed(slurm, written, planned):
    folder = written(planned("a"))
    queue = queue_of(folder, nothing, lambda: slurm.queue.write_text(""), gone_s=0.05)
    assert [status.state for status in queue.run()] == [RunState.FAILED]

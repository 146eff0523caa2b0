"""One attempt at a run: its command line, its records and its lock."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import time

import pytest

from lit_illada.errors import UserError
from lit_illada.overrides import parse_assignment
from lit_illada.sweep import attempt as attempt_module
from lit_illada.sweep.attempt import NOT_MINE, attempt
from lit_illada.sweep.folder import RunState, SweepFolder, locked, read_record


@pytest.fixture(autouse=True)
def _output_stays_ours(monkeypatch):
    monkeypatch.setattr(attempt_module, "_print_to", lambda log: None)


@pytest.fixture
def one(written, planned):
    """A sweep of one run, the run's folder, and a function that attempts it with a given outcome."""
    folder = written(planned("a"))
    run_folder = folder.run_folder(planned("a"))

    def one(outcome, make=()):
        seen = []

        def call(words):
            seen.append(words)
            for name in make:
                (run_folder.path / name).parent.mkdir(parents=True, exist_ok=True)
                (run_folder.path / name).write_text("{}")
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return attempt(folder, "a", call), seen

    return one, run_folder


def test_an_error_of_the_first_slurm_task_ends_the_others(one, monkeypatch):
    attempted, run_folder = one
    for name, value in {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    run_folder.path.mkdir(parents=True, exist_ok=True)
    run_folder.path.joinpath("config.yaml").write_text("{}")
    run_folder.summary.write_text("damaged")
    with pytest.raises(UserError, match="summary"):
        attempted(0)
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert attempted(0) == (NOT_MINE, [])


def test_run_gets_its_folder_and_name_and_records_its_end(one):
    attempted, run_folder = one
    status, seen = attempted(0)
    assert (status, run_folder.state) == (0, RunState.FINISHED)
    assert seen == [["pretrain", "name='a'", f"run_dir='{run_folder.path}'"]]
    done = read_record(run_folder.done)
    assert done["attempts"] == 1
    assert done["elapsed_s"] >= 0
    assert done["max_rss_bytes"] > 10e6


def test_a_folder_with_an_apostrophe_is_passed_on(written, planned, tmp_path):
    folder, seen = SweepFolder(tmp_path / "it's mine"), []
    written(planned("a")).path.rename(folder.path)
    assert attempt(folder, "a", lambda words: seen.append(words) or 0) == 0
    assert parse_assignment(seen[0][-1]).value == str(folder.runs / "a")


def test_finished_run_is_not_repeated(one):
    attempted, _ = one
    attempted(0)
    assert attempted(0) == (NOT_MINE, [])


def test_failure_is_recorded_and_removed_by_the_next_attempt(one):
    attempted, run_folder = one
    run_folder.path.mkdir(parents=True)
    run_folder.log.write_text("".join(f"line {n}\n\n" for n in range(50)) + "50 %\r100 %\n")
    status, _ = attempted(2)
    assert (status, run_folder.state) == (2, RunState.FAILED)
    failed = read_record(run_folder.failed)
    assert (failed["exit_status"], failed["attempts"]) == (2, 1)
    assert failed["last_lines"][-2:] == ["line 49", "100 %"]
    attempted(0)
    assert run_folder.state is RunState.FINISHED
    assert not run_folder.failed.exists()


def test_exception_in_a_run_is_a_failure(one):
    attempted, run_folder = one
    assert attempted(ZeroDivisionError())[0] == 1
    assert run_folder.state is RunState.FAILED


@pytest.mark.parametrize("status", [130, 143, 138, -15, -2, -10])
def test_stopped_run_has_not_failed(one, status):
    attempted, run_folder = one
    attempted(status)
    assert run_folder.state is RunState.INTERRUPTED


def test_run_with_a_checkpoint_resumes_and_one_without_restarts(one):
    attempted, run_folder = one
    attempted(143, make=["config.yaml", "samples.txt"])
    _, seen = attempted(143, make=["config.yaml", "checkpoints/step=00000001.ckpt"])
    assert not (run_folder.path / "samples.txt").exists()
    assert "run_dir" in seen[0][-1]
    assert attempted(143)[1] == [["pretrain", "--resume", str(run_folder.path)]]
    assert [attempt["fingerprint"] for attempt in run_folder.read_attempts()] == ["of a"] * 3


def test_interrupted_scoring_resumes(written, planned):
    run = planned("a", command="score", num_steps=None)
    folder = written(run)
    run_folder = folder.run_folder(run)
    seen = []

    def call(words):
        seen.append(words)
        (run_folder.path / "config.yaml").write_text("{}")
        (run_folder.path / "items-0.jsonl").write_text("{}")
        return 143

    assert [attempt(folder, "a", call) for _ in range(2)] == [143, 143]
    assert seen == [["score", "--out", str(run_folder.path)], ["score", "--out", str(run_folder.path), "--resume"]]
    assert (run_folder.path / "items-0.jsonl").exists()


def test_run_killed_after_its_last_step_is_recorded_as_finished(one):
    attempted, run_folder = one
    attempted(143, make=["config.yaml", "checkpoints/step=00000003.ckpt"])
    run_folder.summary.write_text(json.dumps({"end": {"step": 3}}))
    assert attempted(1) == (0, [])
    assert run_folder.state is RunState.FINISHED


@pytest.mark.parametrize("end", [{}, {"step": 2}])
def test_run_killed_before_its_final_metrics_resumes(one, end):
    attempted, run_folder = one
    attempted(143, make=["config.yaml", "checkpoints/step=00000002.ckpt", "checkpoints/step=00000003.ckpt"])
    run_folder.summary.write_text(json.dumps({"end": end}))
    assert attempted(0)[1] == [["pretrain", "--resume", str(run_folder.path)]]
    names = sorted(path.name for path in run_folder.path.glob("checkpoints/*"))
    assert names == ["step=00000002.ckpt", "step=00000003.ckpt"]


def test_run_locked_by_another_process_is_not_executed(one):
    attempted, run_folder = one
    with locked(run_folder) as is_mine:
        assert is_mine
        assert run_folder.state is RunState.RUNNING
        assert attempted(0) == (NOT_MINE, [])
    assert run_folder.state is RunState.PENDING


def test_elapsed_time_includes_earlier_attempts(one):
    attempted, run_folder = one
    attempted(143)
    run_folder.log.touch()
    began = run_folder.attempts.stat().st_mtime
    os.utime(run_folder.log, (began + 100, began + 100))
    attempted(0)
    assert read_record(run_folder.done)["elapsed_s"] == pytest.approx(100, abs=2)


def test_missing_file_locks_warn_once(one, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    attempted, run_folder = one
    monkeypatch.setattr(fcntl, "flock", flock)
    assert attempted(143)[0] == 143
    assert not run_folder.is_locked()
    assert run_folder.state is RunState.INTERRUPTED
    with locked(run_folder) as is_mine:
        assert is_mine
    assert caplog.text.count("cannot be locked ([Errno") == 1


def test_lock_is_released_when_its_process_dies(written, planned, worker):
    folder = written(planned("a"))
    run_folder = folder.run_folder(planned("a"))
    # so many steps that it cannot end before the test sees it, however busy the machine
    process = subprocess.Popen([*worker(steps=100_000), str(folder.path), "a"], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while run_folder.state is not RunState.RUNNING:
        assert process.poll() is None, "the worker ended"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run_folder.state is RunState.INTERRUPTED
    assert not run_folder.failed.exists()

"""One attempt at a run: what it starts with, what it records, and how it keeps out of another's way."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import time

import pytest

from lit_illada.sweep import attempt as attempt_module
from lit_illada.sweep.attempt import NOT_MINE, attempt
from lit_illada.sweep.folder import RunState, locked, read_record


@pytest.fixture(autouse=True)
def _output_stays_ours(monkeypatch):
    monkeypatch.setattr(attempt_module, "_print_to", lambda log: None)


@pytest.fixture
def one(written, planned):
    """A sweep of one run, its place, and what attempting it with this outcome gives."""
    folder = written(planned("a"))
    place = folder.run_folder(planned("a"))

    def one(outcome, make=()):
        seen = []

        def call(words):
            seen.append(words)
            for name in make:
                (place.path / name).parent.mkdir(parents=True, exist_ok=True)
                (place.path / name).write_text("{}")
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return attempt(folder, "a", call), seen

    return one, place


def test_a_run_begins_with_its_folder_and_name_and_ends_with_a_record(one):
    attempted, place = one
    status, seen = attempted(0)
    assert (status, place.state) == (0, RunState.FINISHED)
    assert seen == [["pretrain", "name='a'", f"run_dir='{place.path}'"]]
    done = read_record(place.done)
    assert done["attempts"] == 1
    assert done["elapsed_s"] >= 0
    assert done["max_rss_bytes"] > 10e6


def test_a_finished_run_is_not_done_again(one):
    attempted, _ = one
    attempted(0)
    assert attempted(0) == (NOT_MINE, [])


def test_a_failure_is_recorded_with_its_last_words_and_forgotten_at_the_next_attempt(one):
    attempted, place = one
    place.path.mkdir(parents=True)
    place.log.write_text("".join(f"line {n}\n\n" for n in range(50)) + "50 %\r100 %\n")
    status, _ = attempted(2)
    assert (status, place.state) == (2, RunState.FAILED)
    failed = read_record(place.failed)
    assert (failed["exit_status"], failed["attempts"]) == (2, 1)
    assert failed["last_lines"][-2:] == ["line 49", "100 %"]
    attempted(0)
    assert place.state is RunState.FINISHED
    assert not place.failed.exists()


def test_a_bug_in_a_run_is_a_failure_too(one):
    attempted, place = one
    assert attempted(ZeroDivisionError())[0] == 1
    assert place.state is RunState.FAILED


@pytest.mark.parametrize("status", [130, 143, -15, -2])
def test_a_run_that_was_asked_to_stop_has_not_failed(one, status):
    attempted, place = one
    attempted(status)
    assert place.state is RunState.INTERRUPTED


def test_a_run_with_a_checkpoint_goes_on_and_one_without_begins_anew(one):
    attempted, place = one
    attempted(143, make=["config.yaml", "samples.txt"])
    _, seen = attempted(143, make=["config.yaml", "checkpoints/step=00000001.ckpt"])
    assert not (place.path / "samples.txt").exists()
    assert "run_dir" in seen[0][-1]
    assert attempted(143)[1] == [["pretrain", "--resume", str(place.path)]]
    assert [attempt["fingerprint"] for attempt in place.read_attempts()] == ["of a"] * 3


def test_scores_begun_are_gone_on_with(written, planned):
    run = planned("a", command="score", num_steps=None)
    folder = written(run)
    place = folder.run_folder(run)
    seen = []

    def call(words):
        seen.append(words)
        (place.path / "config.yaml").write_text("{}")
        (place.path / "items-0.jsonl").write_text("{}")
        return 143

    assert [attempt(folder, "a", call) for _ in range(2)] == [143, 143]
    assert seen == [["score", "--out", str(place.path)], ["score", "--out", str(place.path), "--resume"]]
    assert (place.path / "items-0.jsonl").exists()


def test_a_run_killed_between_its_last_step_and_its_record_is_recorded(one):
    attempted, place = one
    attempted(143, make=["config.yaml", "checkpoints/step=00000003.ckpt"])
    place.summary.write_text(json.dumps({"end": {"step": 3}}))
    assert attempted(1) == (0, [])
    assert place.state is RunState.FINISHED


@pytest.mark.parametrize("end", [{}, {"step": 2}])
def test_a_run_killed_before_its_last_figures_is_resumed_for_them(one, end):
    attempted, place = one
    attempted(143, make=["config.yaml", "checkpoints/step=00000002.ckpt", "checkpoints/step=00000003.ckpt"])
    place.summary.write_text(json.dumps({"end": end}))
    assert attempted(0)[1] == [["pretrain", "--resume", str(place.path)]]
    names = sorted(path.name for path in place.path.glob("checkpoints/*"))
    assert names == ["step=00000002.ckpt", "step=00000003.ckpt"]


def test_a_run_that_another_process_has_is_left_alone(one):
    attempted, place = one
    with locked(place) as is_mine:
        assert is_mine
        assert place.state is RunState.RUNNING
        assert attempted(0) == (NOT_MINE, [])
    assert place.state is RunState.PENDING


def test_elapsed_time_counts_earlier_attempts_up_to_their_last_sign_of_life(one):
    attempted, place = one
    attempted(143)
    place.log.touch()
    began = place.attempts.stat().st_mtime
    os.utime(place.log, (began + 100, began + 100))
    attempted(0)
    assert read_record(place.done)["elapsed_s"] == pytest.approx(100, abs=2)


def test_a_file_system_without_locks_is_told_once_and_worked_on(one, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    attempted, place = one
    monkeypatch.setattr(fcntl, "flock", flock)
    assert attempted(143)[0] == 143
    assert not place.is_locked()
    assert place.state is RunState.INTERRUPTED
    with locked(place) as is_mine:
        assert is_mine
    assert caplog.text.count("cannot be locked ([Errno") == 1


def test_the_lock_falls_with_the_process_however_it_dies(written, planned, worker):
    folder = written(planned("a"))
    place = folder.run_folder(planned("a"))
    process = subprocess.Popen([*worker(steps=1000), str(folder.path), "a"], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while place.state is not RunState.RUNNING and time.monotonic() < end:
        time.sleep(0.02)
    assert place.state is RunState.RUNNING
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert place.state is RunState.INTERRUPTED
    assert not place.failed.exists()

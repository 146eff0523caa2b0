"""One attempt at one run, in the process that executes it: lock, start or resume, record the outcome."""

import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from lit_illada.errors import UserError
from lit_illada.runtime.files import append_line, write_atomically
from lit_illada.runtime.terminal import print_lines
from lit_illada.sweep.folder import PlannedRun, SweepFolder, SweepRunFolder, locked, read_record
from lit_illada.sweep.library import begin_path
from lit_illada.sweep.spec import Command

# exit status: nothing was done, since another process holds the run or has finished it
NOT_MINE = 75
_STOPPED = {128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)}
_WORDS = "LIT_ILLADA_SWEEP_WORDS"
_WORDS_FILE = "words.json"
_KEPT = {"run.lock", "log.txt", "attempts.jsonl", "job.json", _WORDS_FILE}
_LAST_LINES = 12


def attempt(folder: SweepFolder, run_id: str, call: Callable[[list[str]], int]) -> int:
    """Execute a run with its output in its log. Returns its exit status, or NOT_MINE.

    call: runs a command line, given as words, in this process and returns its exit status. Raises UserError for an
    unknown run.
    """
    if _WORDS in os.environ:  # a further process of the run, started by the first one
        return call(json.loads(os.environ[_WORDS]))
    rank = int(os.environ.get("SLURM_PROCID", "0")) if int(os.environ.get("SLURM_NTASKS", "1")) > 1 else 0
    runs = {run.id: run for run in folder.read_plan()}
    if run_id not in runs:
        raise UserError(f"{folder.plan} has no run {run_id!r}")
    run, place = runs[run_id], folder.run_folder(runs[run_id])
    if rank > 0:
        return _follow(place, call)
    with locked(place) as is_mine:
        if not is_mine or place.done.exists():
            _lead(place, [])
            return NOT_MINE
        return _do(folder, run, place, call)


def record_failure(place: SweepRunFolder, exit_status: int) -> None:
    """Write failed.json: exit status, last lines of the log, number of attempts."""
    text = place.log.read_bytes().decode(errors="replace") if place.log.exists() else ""
    record = {
        "failed_at": datetime.now().isoformat(timespec="seconds"),
        "exit_status": exit_status,
        "last_lines": [line.rsplit("\r", 1)[-1] for line in text.split("\n") if line.strip()][-_LAST_LINES:],
        "attempts": len(place.read_attempts()),
    }
    write_atomically(place.failed, json.dumps(record, indent=1) + "\n")


def was_stopped(exit_status: int) -> bool:
    """Whether a stop signal ended the run. Negative statuses: before the run had installed its handler."""
    return exit_status in _STOPPED or exit_status in {-signal.SIGINT, -signal.SIGTERM}


def _do(folder: SweepFolder, run: PlannedRun, place: SweepRunFolder, call: Callable[[list[str]], int]) -> int:
    before_s = _earlier_s(place)
    words = _words(folder, run, place)
    place.failed.unlink(missing_ok=True)
    started_at, since = datetime.now(), time.monotonic()
    record = {"started_at": started_at.isoformat(), "fingerprint": run.fingerprint, "before_s": round(before_s, 3)}
    append_line(place.attempts, json.dumps(record))
    write_atomically(place.labels, json.dumps(folder.read_spec().labels(run.arms, run.seed)) + "\n")
    _print_to(place.log)
    print_lines(f"=== {started_at:%Y-%m-%d %H:%M:%S} lit-illada {' '.join(words)}")
    _lead(place, words)
    if words:
        os.environ[_WORDS] = json.dumps(words)
        try:
            status = call(words)
        except Exception:
            traceback.print_exc()
            status = 1
        finally:
            del os.environ[_WORDS]
    else:
        status = 0  # finished, but killed before done.json was written
    sys.stdout.flush()
    sys.stderr.flush()
    if status == 0:
        _record_end(place, before_s + time.monotonic() - since)
    elif not was_stopped(status):
        record_failure(place, status)
    return status


def _lead(place: SweepRunFolder, words: list[str]) -> None:
    """Pass the command line to the run's other Slurm tasks; an empty one makes them exit."""
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        write_atomically(place.path / _WORDS_FILE, json.dumps({"job": _slurm_job(), "words": words}) + "\n")


def _follow(place: SweepRunFolder, call: Callable[[list[str]], int]) -> int:
    """Execute the command line that the first task of the job has chosen."""
    while (told := read_record(place.path / _WORDS_FILE)) is None or told["job"] != _slurm_job():
        time.sleep(0.2)
    if not told["words"]:
        return NOT_MINE
    _print_to(place.log)
    return call(told["words"])


def _slurm_job() -> str:
    """Identifier of the job that changes with each requeue."""
    return f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def _words(folder: SweepFolder, run: PlannedRun, place: SweepRunFolder) -> list[str]:
    """Command line that starts or resumes a run; empty where the run is complete."""
    is_begun = (place.path / "config.yaml").is_file()
    if run.command != Command.SCORE and is_begun:
        summary = (read_record(place.summary) or {}).get("end", {})
        if steps := [_step_of(checkpoint) for checkpoint in place.path.glob("checkpoints/step=*.ckpt")]:
            is_done = max(steps) == run_length(place, run) == summary.get("step")
            return [] if is_done else [run.command, "--resume", str(place.path)]
    is_resumed = run.command == Command.SCORE and is_begun
    if not is_resumed:
        _clear(place)
    parent = [str(folder.runs / run.parent)] if run.parent else []
    if run.begin_from is not None:
        parent = [str(begin_path(run.begin_from))]
    if run.command == Command.SCORE:
        resume = ["--resume"] * is_resumed
        return [run.command, *parent, "--out", str(place.path), *resume, *run.arguments, *run.overrides]
    return [run.command, *run.arguments, *parent, *run.overrides, f"name='{run.id}'", f"run_dir='{place.path}'"]


def run_length(place: SweepRunFolder, run: PlannedRun) -> int | None:
    """Steps of the whole run; None while the number depends on data that are not prepared yet."""
    if run.num_steps is not None:
        return run.num_steps
    return (read_record(place.progress) or {}).get("max_steps")


def _step_of(checkpoint: Path) -> int:
    return int(re.findall(r"\d+", checkpoint.stem)[-1])


def _clear(place: SweepRunFolder) -> None:
    """Remove the files of an attempt that wrote no checkpoint."""
    for path in place.path.iterdir():
        if path.name in _KEPT:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _earlier_s(place: SweepRunFolder) -> float:
    """Seconds of earlier attempts. A killed attempt ends with the last change of its files."""
    attempts = place.read_attempts()
    if not attempts:
        return 0.0
    signs = [file.stat().st_mtime for file in (place.progress, place.log, place.failed) if file.exists()]
    began_at = datetime.fromisoformat(attempts[-1]["started_at"]).timestamp()
    return attempts[-1]["before_s"] + max(0.0, max(signs, default=began_at) - began_at)


def _record_end(place: SweepRunFolder, elapsed_s: float) -> None:
    # kilobytes on Linux, bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    record = {
        "finished_at": datetime.now().isoformat(timespec="seconds"),
        "elapsed_s": round(elapsed_s, 3),
        "max_rss_bytes": max(peaks) * unit,
        "attempts": len(place.read_attempts()),
    }
    write_atomically(place.done, json.dumps(record) + "\n")


def _print_to(log: Path) -> None:
    """Redirect output of this process and its children to the log."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)

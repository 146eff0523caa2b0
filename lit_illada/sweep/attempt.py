"""Executes one attempt at a run in this process: locks the run, starts or resumes it, records the outcome."""

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
from lit_illada.overrides import quoted
from lit_illada.runtime.files import append_line, write_atomically
from lit_illada.runtime.terminal import print_lines
from lit_illada.sweep.folder import PlannedRun, SweepFolder, SweepRunFolder, locked, read_record
from lit_illada.sweep.library import begin_path
from lit_illada.sweep.spec import Command

# exit status if another process holds the run or has finished it
NOT_MINE = 75
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_WORDS = "LIT_ILLADA_SWEEP_WORDS"
_WORDS_FILE = "words.json"
_SWEEP_FILES = {"run.lock", "log.txt", "attempts.jsonl", "job.json", _WORDS_FILE}
_LAST_LINES = 12


def attempt(folder: SweepFolder, run_id: str, call: Callable[[list[str]], int]) -> int:
    """Execute a run with its output in its log. Returns its exit status, or NOT_MINE.

    call: executes a command line, given as words, in this process and returns its exit status. Raises UserError for an
    unknown run.
    """
    if _WORDS in os.environ:  # a further rank of the run, started by rank 0
        return call(json.loads(os.environ[_WORDS]))
    rank = int(os.environ.get("SLURM_PROCID", "0")) if int(os.environ.get("SLURM_NTASKS", "1")) > 1 else 0
    runs = {run.id: run for run in folder.read_plan()}
    if run_id not in runs:
        raise UserError(f"{folder.plan} has no run {run_id!r}")
    run, run_folder = runs[run_id], folder.run_folder(runs[run_id])
    if rank > 0:
        return _follow(run_folder, call)
    with locked(run_folder) as is_mine:
        if not is_mine or run_folder.done.exists():
            _lead(run_folder, [])
            return NOT_MINE
        try:
            return _execute(folder, run, run_folder, call)
        except BaseException:
            _lead(run_folder, [])  # the other tasks wait for a command line
            raise


def record_failure(run_folder: SweepRunFolder, exit_status: int) -> None:
    """Write failed.json: exit status, last lines of the log, number of attempts."""
    text = run_folder.log.read_bytes().decode(errors="replace") if run_folder.log.exists() else ""
    record = {
        "failed_at": datetime.now().isoformat(timespec="seconds"),
        "exit_status": exit_status,
        "last_lines": [line.rsplit("\r", 1)[-1] for line in text.split("\n") if line.strip()][-_LAST_LINES:],
        "attempts": len(run_folder.read_attempts()),
    }
    write_atomically(run_folder.failed, json.dumps(record, indent=1) + "\n")


def was_stopped(exit_status: int) -> bool:
    """Whether a stop signal ended the run, also one that came before the run's handler was installed (−number)."""
    return any(exit_status in (128 + number, -number) for number in _STOP_SIGNALS)


def _execute(folder: SweepFolder, run: PlannedRun, run_folder: SweepRunFolder, call: Callable[[list[str]], int]) -> int:
    """Execute the locked run and record how it ended. Returns its exit status."""
    before_s = _earlier_s(run_folder)
    words = _words(folder, run, run_folder)
    run_folder.failed.unlink(missing_ok=True)
    started_at, since = datetime.now(), time.monotonic()
    record = {"started_at": started_at.isoformat(), "fingerprint": run.fingerprint, "before_s": round(before_s, 3)}
    append_line(run_folder.attempts, json.dumps(record))
    write_atomically(run_folder.labels, json.dumps(folder.read_spec().labels(run.arms, run.seed)) + "\n")
    _print_to(run_folder.log)
    print_lines(f"=== {started_at:%Y-%m-%d %H:%M:%S} lit-illada {' '.join(words)}")
    _lead(run_folder, words)
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
        _record_end(run_folder, before_s + time.monotonic() - since)
    elif not was_stopped(status):
        record_failure(run_folder, status)
    return status


def _lead(run_folder: SweepRunFolder, words: list[str]) -> None:
    """Pass the command line to the other Slurm tasks of the run; an empty one makes them exit."""
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        write_atomically(run_folder.path / _WORDS_FILE, json.dumps({"job": _slurm_job(), "words": words}) + "\n")


def _follow(run_folder: SweepRunFolder, call: Callable[[list[str]], int]) -> int:
    """Wait for the command line of the job's first task, and execute it."""
    while (message := read_record(run_folder.path / _WORDS_FILE)) is None or message["job"] != _slurm_job():
        time.sleep(0.2)
    if not message["words"]:
        return NOT_MINE
    _print_to(run_folder.log)
    return call(message["words"])


def _slurm_job() -> str:
    """Identifier of a job's start; it changes with each requeue."""
    return f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def _words(folder: SweepFolder, run: PlannedRun, run_folder: SweepRunFolder) -> list[str]:
    """Command line that starts or resumes a run; empty if the run is complete."""
    is_begun = (run_folder.path / "config.yaml").is_file()
    if run.command != Command.SCORE and is_begun:
        summary = (read_record(run_folder.summary) or {}).get("end", {})
        if steps := [_step_of(checkpoint) for checkpoint in run_folder.path.glob("checkpoints/step=*.ckpt")]:
            is_done = max(steps) == run_length(run_folder, run) == summary.get("step")
            return [] if is_done else [run.command, "--resume", str(run_folder.path)]
    is_resumed = run.command == Command.SCORE and is_begun
    if not is_resumed:
        _clear(run_folder)
    parent = [str(folder.runs / run.parent)] if run.parent else []
    if run.begin_from is not None:
        parent = [str(begin_path(run.begin_from))]
    if run.command == Command.SCORE:
        resume = ["--resume"] * is_resumed
        return [run.command, *parent, "--out", str(run_folder.path), *resume, *run.arguments, *run.overrides]
    own = {"name": run.id, "run_dir": str(run_folder.path)}
    return [
        run.command, *run.arguments, *parent, *run.overrides, *(f"{key}={quoted(text)}" for key, text in own.items())
    ]  # fmt: skip


def run_length(run_folder: SweepRunFolder, run: PlannedRun) -> int | None:
    """Optimizer steps of the run; None while they depend on data that are not prepared yet.

    An alignment run with a limit of forward passes reports them while it runs.
    """
    if run.num_steps is not None and run.config.get("max_forwards") is None:
        return run.num_steps
    return (read_record(run_folder.progress) or {}).get("max_steps")


def _step_of(checkpoint: Path) -> int:
    return int(re.findall(r"\d+", checkpoint.stem)[-1])


def _clear(run_folder: SweepRunFolder) -> None:
    """Remove the files of an attempt that wrote no checkpoint, except those of the sweep."""
    for path in run_folder.path.iterdir():
        if path.name in _SWEEP_FILES:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _earlier_s(run_folder: SweepRunFolder) -> float:
    """Seconds of earlier attempts. A killed attempt counts until the last change of its files."""
    attempts = run_folder.read_attempts()
    if not attempts:
        return 0.0
    signs = [file.stat().st_mtime for file in (run_folder.progress, run_folder.log, run_folder.failed) if file.exists()]
    began_at = datetime.fromisoformat(attempts[-1]["started_at"]).timestamp()
    return attempts[-1]["before_s"] + max(0.0, max(signs, default=began_at) - began_at)


def _record_end(run_folder: SweepRunFolder, elapsed_s: float) -> None:
    # kilobytes on Linux, bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    record = {
        "finished_at": datetime.now().isoformat(timespec="seconds"),
        "elapsed_s": round(elapsed_s, 3),
        "max_rss_bytes": max(peaks) * unit,
        "attempts": len(run_folder.read_attempts()),
    }
    write_atomically(run_folder.done, json.dumps(record) + "\n")


def _print_to(log: Path) -> None:
    """Redirect the output of this process and its children to the log."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)

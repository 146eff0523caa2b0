"""Detects dead ranks, so that a distributed job fails with the rank and its log instead of hanging.

Every rank writes to `ranks/` of the run's folder a log (`rank-1.log`: its messages and the stack traces of a crash) and
a small state (`rank-1.json`: process, step, how it ended), which a thread renews every second. The same thread checks
the other ranks: one on the same machine is dead if its process is gone, one on another machine if its state has not
been renewed for a minute. A collective that waits for a dead rank cannot be interrupted, so the thread exits the
process.
"""

import faulthandler
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_illada.errors import UserError
from lit_illada.runtime.files import FileError, read_json, write_atomically
from lit_illada.runtime.records import require_fields
from lit_illada.runtime.terminal import PrintableFormatter, print_lines

log = logging.getLogger(__name__)
_EVERY_S = 1.0  # interval of renewing the state and checking the other ranks
_SILENT_S = 60.0  # without a renewed state, after which a rank is dead; network file systems show changes late
_GRACE_S = 3.0  # for a process to end on its own before it is killed


class RankWatch(Callback):
    """Monitors the other ranks of a run, from the first `setup` on; does nothing in a run of one process.

    Also a context manager around the run: an exception inside it is recorded as how this rank ended, and is raised as a
    UserError if another rank's end caused it.

    timeout_s: timeout of collectives, for failures that the monitoring does not detect.
    """

    def __init__(self, folder: Path, timeout_s: float) -> None:
        self._folder = folder
        self._timeout_s = timeout_s
        self._rank: int | None = None
        self._dead: str | None = None
        self._step = 0
        self._started_at = time.time()
        self._stopped = threading.Event()
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        # by rank: time stamp of its last known state (its clock), and when that state was first read (monotonic clock)
        self._seen: dict[int, tuple[float | None, float]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or self._rank is not None:
            return
        self._rank, self._world_size = trainer.global_rank, trainer.world_size
        self._children = _take_over_children()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._log = logging.FileHandler(self._folder / f"rank-{self._rank}.log", encoding="utf-8")
        self._log.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(self._log)
        faulthandler.enable(self._log.stream)  # type: ignore[arg-type]
        self._note("rank %d of %d, process %d", self._rank, self._world_size, os.getpid())
        self._write()
        # until then a state in the folder may be that of an earlier start of the run
        trainer.strategy.barrier("ranks")
        # torchrun sends SIGTERM as soon as a rank has died: report that rank; otherwise GracefulStop handles the signal
        self._previous_handler = signal.signal(signal.SIGTERM, self._on_sigterm)
        threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._step = trainer.global_step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if self._rank is None:
            if isinstance(error, torch.distributed.DistNetworkError):
                raise UserError(
                    f"the ranks did not connect within trainer.timeout_s={self._timeout_s:g} seconds ({error}): check "
                    "that every process has started and reaches MASTER_ADDR and MASTER_PORT"
                ) from error
            return
        if error is None or isinstance(error, SystemExit | KeyboardInterrupt):
            self._stopped.set()
            # ranks end together, except on Ctrl-C, after which the others may still wait for this one
            self._write(ended="was interrupted" if isinstance(error, KeyboardInterrupt) else "")
            if signal.getsignal(signal.SIGTERM) == self._on_sigterm:  # unless another handler has been installed since
                signal.signal(signal.SIGTERM, self._previous_handler)
            self._close_log()
            return
        # torchrun and Slurm send SIGTERM once a rank has died; this rank is ending already, and reports why
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if isinstance(error, UserError):
            self._write(ended=str(error))
            self._note("ended: %s", error)
            self._end_children()
            return
        reason = self._reason(error)
        self._write(ended=reason or f"{type(error).__name__}: {error}")
        self._note("ended", exc_info=(type(error), error, traceback))
        self._end_children()
        if reason:
            raise UserError(reason) from error

    def _end_children(self) -> None:
        """Wait for the child processes, which detect that this rank has ended, and kill those that hang."""
        end = time.monotonic() + _GRACE_S
        for child in self._children.values():
            try:
                child.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()

    def _note(self, message: str, *values: object, exc_info: Any = None) -> None:
        """Write to this rank's log only."""
        self._log.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, message, values, exc_info))

    def _close_log(self) -> None:
        faulthandler.disable()
        logging.getLogger().removeHandler(self._log)
        self._log.close()

    def _reason(self, error: BaseException) -> str | None:
        """Return the message if another rank caused this error, by ending or by a timeout; else None."""
        if not isinstance(error, RuntimeError):  # torch's DistError is one
            return None
        end = time.monotonic() + 4 * _EVERY_S
        while self._dead is None and time.monotonic() < end:
            self._dead = self._find_dead()
            time.sleep(_EVERY_S / 10)
        if self._dead is None and any(word in str(error).lower() for word in ("timed out", "timeout")):
            return (
                f"a collective timed out after trainer.timeout_s={self._timeout_s:g} seconds: {self._positions()}; "
                f"logs: {self._folder}"
            )
        return self._dead

    def _watch(self) -> None:
        while not self._stopped.wait(_EVERY_S):
            self._write()
            self._dead = self._dead or self._find_dead()
            if self._dead:
                # the main thread may have failed in a collective too, and then reports and exits on its own
                if not self._stopped.wait(_GRACE_S):
                    self._report(self._dead)
                self._stopped.wait(_GRACE_S)
                for child in self._children.values():
                    child.kill()
                os._exit(1)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if dead := self._dead or self._find_dead():
            self._report(dead)
            os._exit(1)
        if not callable(self._previous_handler):
            raise SystemExit(128 + number)
        self._previous_handler(number, frame)

    def _report(self, dead: str) -> None:
        """Print and record the dead rank once, where no exception can be raised."""
        if not self._state(self._rank).get("ended"):
            self._write(ended=dead)
            self._note("ended: %s", dead)
            print_lines(f"Error: {dead}", sys.stderr)

    def _find_dead(self) -> str | None:
        for rank in range(self._world_size):
            if rank == self._rank or (state := self._state(rank)).get("ended") == "":
                continue
            if how := self._how_dead(rank, state):
                where = f"rank {rank} (process {state['pid']} on {state['host']})" if state else f"rank {rank}"
                seen = f"last seen at step {state['step']}" if state else "never seen"
                return f"{where} {how}; {seen}; its log: {self._log_of(rank)}"
        return None

    def _how_dead(self, rank: int, state: dict[str, Any]) -> str | None:
        if state.get("ended"):
            return f"ended: {state['ended']}"
        child = self._children.get(rank)
        if child is not None and child.poll():
            return _how_ended(child.returncode)
        if state.get("host") == socket.gethostname():
            return None if _is_alive(state["pid"]) else "was killed or crashed"
        renewed_at = state.get("renewed_at")  # clocks of machines differ, so only a change is meaningful
        if rank not in self._seen or self._seen[rank][0] != renewed_at:
            self._seen[rank] = renewed_at, time.monotonic()
            return None
        silent_s = time.monotonic() - self._seen[rank][1]
        return f"has not renewed its state for {silent_s:.0f} s" if silent_s > _SILENT_S else None

    def _positions(self) -> str:
        steps = {rank: self._state(rank).get("step") for rank in range(self._world_size)}
        return ", ".join(f"rank {rank} is at step {step}" for rank, step in steps.items())

    def _log_of(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.log"

    def _state(self, rank: int | None) -> dict[str, Any]:
        try:
            file = self._folder / f"rank-{rank}.json"
            return require_fields(read_json(file), _STATE_FIELDS, str(file))
        except FileError:
            return {}

    def _write(self, ended: str | None = None) -> None:
        state = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "step": self._step,
            "renewed_at": time.time(),
            "ended": ended,
        }
        try:
            write_atomically(self._folder / f"rank-{self._rank}.json", json.dumps(state) + "\n", is_durable=False)
        except OSError as error:
            log.warning("rank %s: its state could not be written: %s", self._rank, error)


def _take_over_children() -> dict[int, "subprocess.Popen[bytes]"]:
    """Return the ranks that Lightning started from this process, by rank, and disable its observer of them.

    The observer would kill this process without a message when one of them fails.
    """
    for thread in threading.enumerate():
        children = getattr(thread, "_child_processes", None)
        if thread.name == "child-process-observer" and children:
            thread._child_processes = []  # type: ignore[attr-defined]
            return dict(enumerate(children, 1))
    return {}


_STATE_FIELDS = {"pid": int, "host": str, "step": int | None, "renewed_at": float, "ended": str | None}


def _how_ended(code: int) -> str:
    if code > 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    hint = " (often because memory ran out)" if -code == signal.SIGKILL else ""
    return f"was ended by {name}{hint}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # a zombie has ended, and its parent has not waited for it yet
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return True

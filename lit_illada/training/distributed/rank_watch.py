"""Which rank died, and where is its log? So that a job of several processes ends with an answer instead of a hang.

Every rank leaves in `ranks/` of the run's folder a log (`rank-1.log`: its messages, and the stacks of a crash) and a
small state that a thread renews every few seconds (`rank-1.json`: its process, its step, how it ended). The same thread
looks at the others: one of this machine is dead when its process is gone, one of another machine when its state has not
been renewed for long. A collective that a dead rank leaves open cannot be interrupted, so the thread ends the process.
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
_EVERY_S = 1.0
_SILENT_S = 60.0  # a state on a network's file system may be seen late
_GRACE_S = 3.0


class RankWatch(Callback):
    """Watches the other ranks of a run from the moment this one knows its own; does nothing in a run of one process.

    timeout_s: how long a collective waits, which bounds what the watching misses. A context manager: what is raised
    inside says how this rank ended, and becomes a UserError where another rank's end is its cause.
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
        self._seen: dict[int, tuple[float | None, float]] = {}  # when it renewed its state, and when that was seen

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or self._rank is not None:
            return
        self._rank, self._world_size = trainer.global_rank, trainer.world_size
        self._children = _take_children_over()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._log = logging.FileHandler(self._folder / f"rank-{self._rank}.log", encoding="utf-8")
        self._log.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(self._log)
        faulthandler.enable(self._log.stream)  # type: ignore[arg-type]
        self._note("rank %d of %d, process %d", self._rank, self._world_size, os.getpid())
        self._write()
        # no state of an earlier start of this run is taken for one of this
        trainer.strategy.barrier("ranks")
        # torchrun ends the others as soon as one has died, and they shall say which; else GracefulStop heeds the signal
        self._terminate_before = signal.signal(signal.SIGTERM, self._terminated)
        threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._step = trainer.global_step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if self._rank is None:
            if isinstance(error, torch.distributed.DistNetworkError):
                raise UserError(
                    f"the ranks did not come together within trainer.timeout_s={self._timeout_s:g} seconds ({error}): "
                    "is every process started, and does each reach MASTER_ADDR and MASTER_PORT?"
                ) from error
            return
        if error is None or isinstance(error, SystemExit | KeyboardInterrupt):
            self._stopped.set()
            # ranks end together, but for one that is interrupted: the others may wait for it
            self._write(ended="was interrupted" if isinstance(error, KeyboardInterrupt) else "")
            if signal.getsignal(signal.SIGTERM) == self._terminated:  # who has decided otherwise since keeps it
                signal.signal(signal.SIGTERM, self._terminate_before)
            self._close_log()
            return
        # torchrun and Slurm end the others as soon as one has died; this one ends by itself, and has to say why
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
        """They see this rank's end by themselves; one that hangs does not."""
        end = time.monotonic() + _GRACE_S
        for child in self._children.values():
            try:
                child.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()

    def _note(self, message: str, *values: object, exc_info: Any = None) -> None:
        """Into this rank's log alone."""
        self._log.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, message, values, exc_info))

    def _close_log(self) -> None:
        faulthandler.disable()
        logging.getLogger().removeHandler(self._log)
        self._log.close()

    def _reason(self, error: BaseException) -> str | None:
        """What another rank has to do with an error of this one: its death, or its silence."""
        if not isinstance(error, RuntimeError):  # torch's DistError is one
            return None
        end = time.monotonic() + 4 * _EVERY_S
        while self._dead is None and time.monotonic() < end:
            self._dead = self._find_dead()
            time.sleep(_EVERY_S / 10)
        if self._dead is None and any(word in str(error).lower() for word in ("timed out", "timeout")):
            return (
                f"the ranks have not met for trainer.timeout_s={self._timeout_s:g} seconds: {self._positions()}; their "
                f"logs: {self._folder}"
            )
        return self._dead

    def _watch(self) -> None:
        while not self._stopped.wait(_EVERY_S):
            self._write()
            self._dead = self._dead or self._find_dead()
            if self._dead:
                # the main thread may have learnt of it too, and then ends by itself
                if not self._stopped.wait(_GRACE_S):
                    self._tell(self._dead)
                self._stopped.wait(_GRACE_S)
                for child in self._children.values():
                    child.kill()
                os._exit(1)

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        if dead := self._dead or self._find_dead():
            self._tell(dead)
            os._exit(1)
        if not callable(self._terminate_before):
            raise SystemExit(128 + number)
        self._terminate_before(number, frame)

    def _tell(self, dead: str) -> None:
        """Once, for what cannot be raised."""
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
        renewed_at = state.get("renewed_at")  # its clock need not be this one's: only a change tells
        if rank not in self._seen or self._seen[rank][0] != renewed_at:
            self._seen[rank] = renewed_at, time.monotonic()
            return None
        silent_s = time.monotonic() - self._seen[rank][1]
        return f"has been silent for {silent_s:.0f} s" if silent_s > _SILENT_S else None

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


def _take_children_over() -> dict[int, "subprocess.Popen[bytes]"]:
    """The ranks that Lightning started from this process. Its own observer would kill this one without a word."""
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
    hint = " (often for too little memory)" if -code == signal.SIGKILL else ""
    return f"was ended by {name}{hint}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # a process that is dead, and whose parent has not asked for it yet
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return True

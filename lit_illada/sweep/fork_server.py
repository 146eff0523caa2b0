"""Starts runs as forks of one process that has imported everything: importing torch and Lightning takes 5 s per run.

A crash, a signal or a leak of a run ends with its process, as for runs that are started separately. The server itself
computes nothing and has one thread, since a fork copies only the calling thread: locks that another thread holds would
stay locked in the run. Therefore it does not serve runs on GPUs (CUDA cannot be used after a fork) or with several
threads (OpenBLAS starts its threads on import); these are started separately, which is also what happens if the server
ends for any reason.
"""

import gc
import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TICK_S = 0.02
_REPLY_S = 30.0
_UNKNOWN_STATUS = 255  # of a run that ended after its server


@dataclass(frozen=True)
class Request:
    """A run to start."""

    folder: str  # of the sweep
    id: str  # of the run
    cpus: list[int]  # core numbers
    log: str  # file for its output


class ForkedRun:
    """A run that the server has started, with the part of the interface of `subprocess.Popen` that the pool uses."""

    def __init__(self, server: "ForkServer", pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, or None while the run is active."""
        if self.returncode is None:
            self.returncode = self._server.status_of(self.pid)
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended, which the server has not reported yet
                os.kill(self.pid, number)


class ForkServer:
    """The pool's side of the server."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the server, which then imports. command: calls `serve` in a new process."""
        self._socket, theirs = socket.socketpair()
        with theirs:
            # a session of its own: signals to the pool's process group must not reach it
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        self._text = b""
        self._statuses: dict[int, int] = {}
        self._started: list[int] = []
        self.is_ready = False  # has imported everything
        self.is_alive = True

    def start(self, request: Request) -> ForkedRun | None:
        """Start a run. Returns None if the server has ended."""
        if self.is_alive:
            try:
                self._socket.sendall(json.dumps(vars(request)).encode() + b"\n")
            except OSError:
                self.is_alive = False
        while self.is_alive and not self._started:
            self.is_alive = bool(select.select([self._socket], [], [], _REPLY_S)[0])
            self.update()
        return ForkedRun(self, self._started.pop()) if self._started else None

    def status_of(self, pid: int) -> int | None:
        """Exit status of a run, or None while it goes on."""
        self.update()
        if pid not in self._statuses and not self.is_alive and not _is_running(pid):
            return _UNKNOWN_STATUS
        return self._statuses.get(pid)

    def update(self) -> None:
        """Read what the server has sent, without waiting."""
        while self.is_alive and select.select([self._socket], [], [], 0)[0]:
            try:
                received = self._socket.recv(1 << 16)
            except OSError:
                received = b""
            self.is_alive = bool(received)
            *lines, self._text = (self._text + received).split(b"\n")
            for line in lines:
                message = json.loads(line)
                self.is_ready = True
                if "started" in message:
                    self._started.append(message["started"])
                elif "ended" in message:
                    self._statuses[message["ended"]] = message["status"]

    def close(self) -> None:
        """End the server; runs that it has started go on."""
        self._process.kill()
        self._process.wait()
        self._socket.close()


def serve() -> Request | None:
    """Fork for every request on standard input, a socket, until its other end is closed.

    Returns the request in each fork, whose output then goes to the run's log, and None in the server itself. Modules
    that runs need should be imported before.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        return None
    gc.collect()
    gc.freeze()  # the collector would write to all objects, and so copy the pages that runs share
    channel = socket.socket(fileno=os.dup(0))
    text = b""
    _send(channel, {"ready": True})
    while True:
        _report_ended(channel)
        if not select.select([channel], [], [], _TICK_S)[0]:
            continue
        received = channel.recv(1 << 16)
        if not received:
            return None
        *lines, text = (text + received).split(b"\n")
        for line in lines:
            request = Request(**json.loads(line))
            if (pid := os.fork()) == 0:
                channel.close()
                _become(request)
                return request
            _send(channel, {"started": pid})


def _become(request: Request) -> None:
    """Make this fork like a process that was started for the run."""
    os.setsid()  # so that Ctrl-C reaches only the pool, which forwards it as SIGTERM
    os.sched_setaffinity(0, request.cpus)
    with open(os.devnull, "rb") as nothing, Path(request.log).open("ab") as log:
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source.fileno(), target)


def _report_ended(channel: socket.socket) -> None:
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            _send(channel, {"ended": ended[0], "status": os.waitstatus_to_exitcode(ended[1])})
    except ChildProcessError:
        pass  # no run is left


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


def _is_running(pid: int) -> bool:
    """Whether a process that is not a child of this one runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"

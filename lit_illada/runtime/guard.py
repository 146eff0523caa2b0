"""Calls a function in a process of its own under time and memory limits, for code that may hang, crash or grow.

A time limit inside this process would not stop a call into C, such as 9**9**9. The process is a fork, so a function
need not be importable, as those of a user's file are not. It stays alive between calls, ends with its parent, whose end
of the pipe it then finds closed, and is replaced after a call that ends it.
"""

import importlib
import os
import resource
import signal
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_START_LIMIT_S = 120.0  # imports of other packages on a busy machine
_MAX_MEMORY = 4 * 2**30  # bytes beside those of this process at the fork


class CallError(Exception):
    """A call that raised, ended its process or exceeded its time; the message says which."""


class Guard:
    """A function behind limits; arguments and results are pickled."""

    def __init__(
        self, function: Callable[..., Any], prepare: Callable[[], Any] | None = None, *, is_quiet: bool = False
    ) -> None:
        """
        Args:
            function: called in the process.
            prepare: called once when the process starts, outside the time limit, such as an import.
            is_quiet: discard what the function prints.
        """
        self._function = function
        self._prepare = prepare
        self._is_quiet = is_quiet
        self._connection: Connection | None = None
        self._end: Callable[[], object] | None = None

    def __call__(self, *arguments: Any, limit_s: float) -> Any:
        """The function's result. Raises CallError if it raises, ends its process or takes longer than limit_s."""
        connection = self._connection or self._start()
        try:
            connection.send(arguments)
            return self._answer(connection, limit_s)
        except (EOFError, ConnectionError) as error:
            self.close()
            raise CallError("ended its process") from error
        except CallError:
            raise
        except BaseException:  # such as Ctrl-C: a later answer would be taken for that of another call
            self.close()
            raise

    def close(self) -> None:
        """End the process; the next call starts another."""
        if self._end is not None:
            self._end()
        self._connection = self._end = None

    def _start(self) -> Connection:
        connection, theirs = Pipe()
        if (process := os.fork()) == 0:
            connection.close()
            _serve(theirs, self._function, self._prepare, self._is_quiet)
        theirs.close()
        self._connection = connection
        self._end = weakref.finalize(self, _kill, process, connection)
        try:
            self._answer(connection, _START_LIMIT_S)
        except (EOFError, CallError) as error:
            self.close()
            raise CallError(str(error) or "ended its process") from error
        return connection

    def _answer(self, connection: Connection, limit_s: float) -> Any:
        if not connection.poll(limit_s):
            self.close()
            raise CallError(f"exceeds the time limit of {limit_s:g} s")
        value, error = connection.recv()
        if error is not None:
            raise CallError(error)
        return value


def call(function: str, arguments: list[Any], limit_s: float, package: str) -> Any:
    """The result of `module:function`, called in a process that has imported `package`. Raises CallError."""
    return _guard_of(package, os.getpid())(function, arguments, limit_s=limit_s)


@cache
def _guard_of(package: str, process: int) -> Guard:
    """One guard per package and process: after a fork, two processes would read one pipe."""
    return Guard(_named, partial(importlib.import_module, package), is_quiet=True)


def _named(function: str, arguments: list[Any]) -> Any:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments)


def _kill(process: int, connection: Connection) -> None:
    connection.close()
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(process, 0)


def _serve(
    connection: Connection, function: Callable[..., Any], prepare: Callable[[], Any] | None, is_quiet: bool
) -> None:
    """Answer calls by (value, error) until the parent is gone, then end this process."""
    status = 1
    try:
        # Ctrl-C reaches the whole process group: the parent decides when to end; its own handlers are not for the child
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _limit_memory()
        if is_quiet:
            nothing = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(nothing, stream)
        _reply(connection, prepare or (lambda: None), is_started=False)
        with suppress(EOFError, OSError):
            while True:
                _reply(connection, partial(function, *connection.recv()))
        status = 0
    finally:
        os._exit(status)


def _reply(connection: Connection, run: Callable[[], Any], is_started: bool = True) -> None:
    reply: tuple[Any, str | None]
    try:
        value = run()
        reply = (value if is_started else None, None)
    except Exception as error:  # a user's function may raise anything
        reply = (None, f"raises {type(error).__name__}: {str(error)[:200]}")
    connection.send(reply)


def _limit_memory() -> None:
    with suppress(OSError):  # without /proc there is no limit
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + _MAX_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

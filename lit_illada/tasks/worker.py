"""Calls a function in a subprocess with a time and a memory limit, for checkers of other packages that may hang.

The subprocess stays alive between the calls, since its imports take seconds; a call that exceeds the limit kills it,
and the next call starts another. Arguments and results travel as JSON lines.
"""

import importlib
import json
import os
import resource
import select
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

_START_LIMIT_S = 120.0  # imports of other packages on a busy machine
_MAX_MEMORY = 4 * 2**30  # bytes


class CallError(Exception):
    """A call that raised, ended the subprocess or exceeded its time; the message says which."""


def call(function: str, arguments: list[Any], limit_s: float, package: str) -> Any:
    """The result of `module:function` for JSON arguments. Raises CallError.

    package: imported by the subprocess when it starts, outside the limit.
    """
    return _worker(package, os.getpid()).call(function, arguments, limit_s)


@cache
def _worker(package: str, pid: int) -> "_Worker":
    """One subprocess per package and process: after a fork, two processes would read one pipe."""
    return _Worker(package)


class _Worker:
    def __init__(self, package: str) -> None:
        self._package = package
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, function: str, arguments: list[Any], limit_s: float) -> Any:
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps([function, arguments]).encode() + b"\n")
            process.stdin.flush()
            answer = self._answer(process, limit_s)
        except OSError as error:
            self._stop()
            raise CallError(f"ended: {error}") from error
        if "error" in answer:
            raise CallError(answer["error"])
        return answer["value"]

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            # -c rather than -m: the module is already imported by its package
            code = f"from {__name__} import serve; serve({self._package!r})"
            root = str(Path(__file__).parents[2])
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
            weakref.finalize(self, _kill, process)
            self._process = process
            if "error" in (answer := self._answer(process, _START_LIMIT_S)):
                self._stop()
                raise CallError(answer["error"])
        return self._process

    def _answer(self, process: "subprocess.Popen[bytes]", limit_s: float) -> dict[str, Any]:
        """The next line of the subprocess, written at once and in one piece. Raises CallError without one."""
        assert process.stdout is not None
        is_ready, _, _ = select.select([process.stdout], [], [], limit_s)
        line = process.stdout.readline() if is_ready else b""
        if not line.endswith(b"\n"):
            self._stop()
            raise CallError("the subprocess ended" if is_ready else f"took longer than {limit_s:g} s")
        return json.loads(line)

    def _stop(self) -> None:
        if self._process is not None:
            _kill(self._process)
            self._process = None


def _kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def serve(package: str) -> None:
    """Answers calls until standard input ends; what the functions print is discarded."""
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def answer(run: Callable[[], Any]) -> None:
        try:
            content = {"value": run()}
        except Exception as error:
            content = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        answers.write(json.dumps(content).encode() + b"\n")
        answers.flush()

    answer(partial(_imported, package))
    for line in sys.stdin.buffer:
        function, arguments = json.loads(line)
        answer(partial(_run, function, arguments))


def _imported(package: str) -> None:
    importlib.import_module(package)


def _run(function: str, arguments: list[Any]) -> Any:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments)

"""Runs untrusted Python programs with limits of CPU and wall time, memory, file size and processes, without a network.

Guards against programs that hang, flood or delete by mistake. It is no barrier against an attacker: the program runs
with the rights of the user and can read the user's files. Run it inside a container where that matters.
"""

import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from lit_illada.tasks import sandbox_child

_log = logging.getLogger(__name__)
_MAX_RESULT_BYTES = 4096


@dataclass(frozen=True)
class Limits:
    """Limits of one program."""

    cpu_s: int = 5
    """Seconds of processor time."""
    wall_s: float = 30.0
    """Seconds of real time."""
    memory_mb: int = 1024
    """Address space in MiB."""
    file_mb: int = 1
    """Size of a file in MiB."""


def run(program: str, limits: Limits) -> str | None:
    """None if the program ends without an exception, else the reason in one line.

    The program sees an empty working folder, no environment variables, and only the standard library.
    """
    token = secrets.token_hex(16)
    request = {
        "program": program,
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_mb * 2**20,
        "file_bytes": limits.file_mb * 2**20,
        "token": token,
    }
    # -I ignores the environment and the user's packages, -S all others, -B writes no bytecode
    command = [*_namespaces(), sys.executable, "-ISB", sandbox_child.__file__]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as result:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=result,  # a file rather than a pipe: its size is limited
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder},
            start_new_session=True,
        )
        try:
            process.communicate(json.dumps(request).encode(), timeout=limits.wall_s)
        except subprocess.TimeoutExpired:
            return f"took longer than {limits.wall_s:g} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        result.seek(0)
        return _reason(result.read(_MAX_RESULT_BYTES), token, process.returncode)


def _reason(result: bytes, token: str, status: int) -> str | None:
    try:
        outcome = json.loads(result)
    except ValueError:
        # the kernel kills at the limit of processor time, which unshare reports as an exit with another status
        return "ended itself early" if status == 0 else "exceeded its processor time, or ended itself early"
    if isinstance(outcome, dict) and outcome.get("token") == token:
        return None
    return " ".join(str(outcome.get("error") if isinstance(outcome, dict) else outcome).split())


@cache
def _namespaces() -> list[str]:
    """The command that starts a program without a network and with processes that end with it; empty if not allowed."""
    for options in (["--net", "--pid", "--fork", "--kill-child"], ["--net"]):
        command = ["unshare", "--user", "--map-current-user", *options, "--"]
        with suppress(OSError, subprocess.TimeoutExpired):
            if subprocess.run([*command, "true"], capture_output=True, timeout=30).returncode == 0:
                return command
    _log.warning("unshare is not available or not allowed: only the interpreter keeps programs from the network")
    return []

"""Runs one program under limits; executed by `sandbox.py` as a script, in a process of its own.

Reads {"program", "cpu_s", "memory_bytes", "file_bytes", "token"} from standard input, and writes {"token"} if the
program ends without an exception, else {"error"}. Limits are hard limits of the process, so the program cannot raise
them. The audit hook, which cannot be removed either, refuses networks, other processes, native code and writing
outside the working folder. Uses the standard library only.
"""

import json
import os
import resource
import sys
from typing import Any

_REFUSED = (
    *("socket.", "subprocess.", "ctypes.", "pty.", "shutil.", "os.system", "os.exec", "os.fork", "os.spawn"),
    *("os.posix_spawn", "os.startfile", "os.kill", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.chmod"),
    *("os.chown", "os.link", "os.symlink", "os.mkdir", "os.setxattr", "signal.pthread_kill"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    task = json.loads(sys.stdin.buffer.read())
    result = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    token = task.pop("token")
    try:
        _limit(task["cpu_s"], task["memory_bytes"], task["file_bytes"])
        code = compile(task["program"], "<program>", "exec")
        sys.addaudithook(_hook(os.path.realpath(os.getcwd()) + os.sep))
        exec(code, {"__name__": "__main__", "__builtins__": __builtins__})
    except BaseException as error:  # SystemExit too: a program that leaves early has not passed
        outcome = {"error": f"{type(error).__name__}: {error}"[:300]}
    else:
        outcome = {"token": token}
    result.write(json.dumps(outcome))
    result.flush()
    os._exit(0)  # no handlers of the program


def _limit(cpu_s: int, memory_bytes: int, file_bytes: int) -> None:
    limits = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_NPROC: 1,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def _hook(folder: str) -> Any:
    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_REFUSED):
            raise PermissionError(f"{event} is not allowed")
        if event == "open" and len(arguments) == 3 and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            path = arguments[0]
            if not isinstance(path, str | bytes) or not os.path.realpath(os.fsdecode(path)).startswith(folder):
                raise PermissionError("writing outside the working folder is not allowed")

    return refuse


if __name__ == "__main__":
    main()

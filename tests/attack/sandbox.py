"""One command in a process of its own, watched: what it says, writes, starts, and how much time and memory it takes.

A fork server imports the package once, so a process costs some 20 ms. An audit hook reports every file that Python
opens for writing and every process that it starts; a snapshot of the surrounding folder reports the rest.
"""

import hashlib
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from click.testing import CliRunner

TIME_LIMIT_S = 10.0
MEMORY_LIMIT_MB = 700  # above what the process has when it is forked
_MOST_PROCESSES = 2
_SPARE_BYTES = 2 * 2**30  # of address space, beyond what the process has when it is forked
_PRELOADED = ["attack.preload"]
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {  # audit event: which of its arguments is the path that is changed
    "os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0,
    "os.chmod": 0,
}  # fmt: skip
_FOLLOWING = {"os.truncate", "os.chmod"}  # these change what a link points to, the others the link
_STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn"}

# the commit of the checkout, for provenance.jsonl; processes that tokenise
_OUR_OWN = ("git ls-files", "git describe", f"{sys.executable} -m lit_illada.data.prepare.shard_pool")


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    exit_code: None where it raised or was killed. output: of both streams. result: what `measure` made of the box
    afterwards. outside, commands: paths written outside the box, and programs started.
    """

    exit_code: int | None
    output: str = ""
    raised: str = ""
    result: Any = None
    outside: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0
    memory_mb: float = 0.0
    is_killed: bool = False
    arguments: Sequence[str] = ()

    @property
    def last_line(self) -> str:
        lines = self.output.rstrip().splitlines()
        return lines[-1] if lines else ""


@dataclass(frozen=True)
class Job:
    """A command to run in `box`, a folder that it may write to. measure(box, output): what to compare afterwards."""

    box: Path
    arguments: Sequence[str]
    measure: Callable[[Path, str], Any] | None = None
    time_limit_s: float = TIME_LIMIT_S


def run_all(
    jobs: Sequence[Job], prepare: Sequence[Callable[[Job], None]], judge: Callable[[int, Job, Outcome], None]
) -> None:
    """Prepare each job's box, run it, pass its outcome to judge(number, job, outcome), and remove its folder."""

    def run(number: int) -> None:
        job = jobs[number]
        prepare[number](job)
        judge(number, job, run_job(job))
        shutil.rmtree(job.box.parent)

    with ThreadPoolExecutor(_MOST_PROCESSES) as pool:
        for _ in pool.map(run, range(len(jobs))):
            pass


def run_job(job: Job) -> Outcome:
    """Run one command; a process that exceeds its time by half is killed."""
    context = _server()
    receiver, sender = context.Pipe(duplex=False)
    before = _snapshot(job.box.parent, job.box)
    process = context.Process(target=_child, args=(job, sender))
    process.start()
    sender.close()
    outcome = Outcome(exit_code=None, raised="the process ended without an answer")
    try:
        if receiver.poll(job.time_limit_s * 1.2):
            outcome = receiver.recv()
        else:
            outcome = Outcome(exit_code=None, is_killed=True, elapsed_s=job.time_limit_s * 1.2)
    except EOFError:
        pass
    finally:
        process.kill()
        process.join()
    changed = sorted(name for name in _differing(before, _snapshot(job.box.parent, job.box)))
    return replace(outcome, arguments=list(job.arguments), outside=sorted({*outcome.outside, *changed}))


@cache
def _server() -> Any:
    tests = str(Path(__file__).parents[1])
    # the server does not take over sys.path
    os.environ["PYTHONPATH"] = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _child(job: Job, sender: Any) -> None:
    os.setsid()
    os.chdir(job.box)
    home = job.box.parent
    os.environ |= {
        "HOME": str(home / "home"),
        "TMPDIR": str(home / "tmp"),
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
    }
    for name in ("home", "tmp"):
        (home / name).mkdir(exist_ok=True)
    outside: list[str] = []
    commands: list[str] = []
    limit = _status_mb("VmSize") * 2**20 + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    base = _status_mb("VmHWM")
    sys.addaudithook(_watch([job.box, home / "tmp", home / "home"], outside, commands))
    started = time.perf_counter()
    exit_code, output, raised = _invoke(job.arguments)
    elapsed_s, memory_mb = time.perf_counter() - started, _status_mb("VmHWM") - base
    result = None
    if job.measure is not None and exit_code == 0:
        result = job.measure(job.box, output)
    sender.send(Outcome(exit_code, output, raised, result, outside[:20], commands[:20], elapsed_s, memory_mb))
    sender.close()
    os.killpg(0, signal.SIGKILL)  # also what the command may have left running


def _invoke(arguments: Sequence[str]) -> tuple[int | None, str, str]:
    from lit_illada.cli import main

    try:
        result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    except BaseException:
        return None, "", "".join(traceback.format_exc()[-3000:])
    return result.exit_code, result.output[-20000:], ""


def _watch(allowed: Sequence[Path], outside: list[str], commands: list[str]) -> Callable[[str, tuple], None]:
    roots = [os.path.realpath(path) + os.sep for path in allowed]

    def is_allowed(path: object, is_followed: bool) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # a descriptor, which was opened before
        text = os.fsdecode(path)
        folder, name = os.path.split(text)
        real = os.path.realpath(text) if is_followed else os.path.join(os.path.realpath(folder), name)
        return f"{real}{os.sep}".startswith((*roots, "/dev/", "/proc/self/"))

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if (
                isinstance(flags, int)
                and flags & _WRITES
                and not is_allowed(path, is_followed=not flags & os.O_NOFOLLOW)
            ):
                outside.append(os.fsdecode(path))
        elif event in _CHANGES:
            path = arguments[_CHANGES[event]]
            if not is_allowed(path, is_followed=event in _FOLLOWING):
                outside.append(f"{event} {os.fsdecode(path)}")
        elif event in _STARTS:
            command = " ".join(map(str, arguments[1])) if event == "subprocess.Popen" else str(arguments)
            if not command.startswith(_OUR_OWN):
                commands.append(command)

    return hook


def _status_mb(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def _snapshot(root: Path, box: Path) -> dict[str, str]:
    """What lies beside the box."""
    own = {box, root / "home", root / "tmp"}
    files = [
        path
        for each in root.iterdir()
        if each not in own
        for path in ([each] if not each.is_dir() else each.rglob("*"))
    ]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}


def _differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [name for name in {*one, *other} if one.get(name) != other.get(name)]

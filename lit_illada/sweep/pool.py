"""Executes a sweep on one machine: several processes at a time, each with its own cores or GPUs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from lit_illada.runtime.cores import usable_cores
from lit_illada.runtime.signals import is_nohup
from lit_illada.sweep.attempt import NOT_MINE, record_failure, was_stopped
from lit_illada.sweep.folder import PlannedRun, RunState, SweepFolder
from lit_illada.sweep.fork_server import ForkedRun, ForkServer, Request
from lit_illada.sweep.progress import Overview, RunStatus

ONE = (sys.executable, "-m", "lit_illada.cli", "sweep", "one")
SERVER = (sys.executable, "-m", "lit_illada.cli", "sweep", "serve")
_TICK_S = 0.05
_LOOK_S = 1.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Slot:
    """Resources of one run at a time."""

    cpus: tuple[int, ...]  # core numbers
    gpus: tuple[str, ...] | None = None  # CUDA device names; None: CUDA_VISIBLE_DEVICES stays as it is


class StopSignals:
    """Counts signals instead of executing their default action, which would end the process and orphan its runs."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self.count = 0
        self._numbers = numbers

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Install the counting handlers for the duration of the context; under `nohup` a hang-up stays ignored."""
        handled = [number for number in self._numbers if not is_nohup(number)]
        before = {number: signal.signal(number, self._on_signal) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


class Pool:
    """Executes the runs of a plan. A failed run does not stop the others.

    Waits for runs that another process executes. Runs that failed in an earlier execution are tried once more.
    """

    def __init__(
        self,
        folder: SweepFolder,
        runs: Sequence[PlannedRun],
        slots: Sequence[Slot],
        show: Callable[[list[RunStatus]], None],
        metric: str,
        command: Sequence[str] = ONE,
        server: Sequence[str] | None = None,
    ) -> None:
        """
        Args:
            folder: the sweep.
            runs: all planned runs, parents first.
            slots: resources; their number is the number of runs at a time.
            show: called with every run's status about once a second.
            metric: name of the metric that statuses contain.
            command: words that, followed by the folder and a run's id, execute that run.
            server: words that start the process whose forks execute `command`; None: every run is started separately.
        """
        self._command = command
        self._server_command = server
        self._server: ForkServer | None = None
        self._folder = folder
        self._overview = Overview(folder, runs, metric)
        self._free = list(slots)
        self._show = show
        self._working: dict[str, tuple[subprocess.Popen[bytes] | ForkedRun, Slot]] = {}
        self._tried: set[str] = set()
        self._terminated: set[str] = set()
        self._failed_before = {s.run.id for s in self._overview.look() if s.state is RunState.FAILED}
        self._signals = StopSignals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def run(self) -> list[RunStatus]:
        """Execute until all runs have ended or, after a signal, have stopped. Returns the final statuses.

        An exception, such as that of a damaged file, stops the runs: nothing would watch them any more.
        """
        statuses = self._overview.look()
        with self._signals.handled(), self._serving(statuses):
            try:
                self._execute(statuses)
            except BaseException:
                for process, _ in self._working.values():
                    process.terminate()
                raise
        statuses = self._overview.look()
        self._show(statuses)
        return statuses

    def _execute(self, statuses: list[RunStatus]) -> None:
        looked_at = -_LOOK_S
        while True:
            if self._reap() or self._is_server_new() or time.monotonic() - looked_at >= _LOOK_S:
                looked_at = time.monotonic()
                statuses = self._overview.look()
                self._show(statuses)
                if not self._signals.count and (self._server is None or self._server.is_ready):
                    self._start(statuses)
            if self._signals.count:
                self._stop()
            if not self._working and (self._signals.count or not self._has_work_left(statuses)):
                break
            time.sleep(_TICK_S)

    @contextmanager
    def _serving(self, statuses: Sequence[RunStatus]) -> Iterator[None]:
        """Start a server of forks where it saves imports: for more runs than are started at once."""
        num_left = sum(status.state is not RunState.FINISHED for status in statuses)
        can_fork = all(slot.gpus is None and len(slot.cpus) == 1 for slot in self._free)
        if self._server_command and sys.platform == "linux" and can_fork and num_left > len(self._free):
            self._server = ForkServer(self._server_command, {**os.environ, **thread_variables(1)})
        server = self._server
        try:
            yield
        finally:
            if server is not None:
                server.close()

    def _is_server_new(self) -> bool:
        """Whether the server has just become able to start runs, or has ended and leaves them to this process."""
        if self._server is None or self._server.is_ready:
            return False
        self._server.update()
        if not self._server.is_alive:
            self._server = None
            return True
        return self._server.is_ready

    @property
    def was_stopped(self) -> bool:
        """Whether a signal stopped the sweep."""
        return self._signals.count > 0

    def _start(self, statuses: Sequence[RunStatus]) -> None:
        finished = {status.run.id for status in statuses if status.state is RunState.FINISHED}
        for status in statuses:
            run = status.run
            if not self._free or not self._can_try(status):
                continue
            if run.parent is None or run.parent in finished:
                self._tried.add(run.id)
                slot = self._free.pop(0)
                self._working[run.id] = (self._spawn(run, slot), slot)

    def _can_try(self, status: RunStatus) -> bool:
        is_open = status.state in (RunState.PENDING, RunState.INTERRUPTED)
        is_open = is_open or (status.state is RunState.FAILED and status.run.id in self._failed_before)
        return is_open and status.run.id not in self._tried

    def _has_work_left(self, statuses: Sequence[RunStatus]) -> bool:
        """Whether a run can still start, or is running in another process."""
        may_end: set[str] = set()
        for status in statuses:  # parents come first
            is_open = status.state is RunState.RUNNING or self._can_try(status)
            if status.state is RunState.FINISHED or (is_open and status.run.parent in {None, *may_end}):
                may_end.add(status.run.id)
        return any(status.run.id in may_end and status.state is not RunState.FINISHED for status in statuses)

    def _spawn(self, run: PlannedRun, slot: Slot) -> subprocess.Popen[bytes] | ForkedRun:
        run_folder = self._folder.run_folder(run)
        run_folder.path.mkdir(parents=True, exist_ok=True)
        if self._server is not None:
            request = Request(str(self._folder.path), run.id, list(slot.cpus), str(run_folder.log))
            if (forked := self._server.start(request)) is not None:
                return forked
            self._server = None
        environment = {**os.environ, **thread_variables(len(slot.cpus))}
        if slot.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
        with run_folder.log.open("ab") as log:
            process = subprocess.Popen(
                [*self._command, str(self._folder.path), run.id],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # so that Ctrl-C reaches only the pool, which forwards it as SIGTERM
            )
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, slot.cpus)
        return process

    def _reap(self) -> bool:
        """Free the slots of runs that have ended, and record failures. Returns whether any run has ended."""
        ended = [id for id, (process, _) in self._working.items() if process.poll() is not None]
        for id in ended:
            process, slot = self._working.pop(id)
            self._free.append(slot)
            run_folder = self._folder.run_folder(next(run for run in self._overview.runs if run.id == id))
            status = process.returncode
            assert status is not None  # it has ended
            if status == NOT_MINE:
                self._tried.discard(id)  # try again if the other process dies
            elif self._signals.count or was_stopped(status):
                continue  # stopped or killed on request: interrupted, not failed
            elif not run_folder.done.exists() and not run_folder.failed.exists():
                # killed, for example out of memory, before it could record its failure; a process that it started may
                # hold the run's lock for a moment longer
                record_failure(run_folder, status)
        return bool(ended)

    def _stop(self) -> None:
        """Forward the first signal as SIGTERM, at which runs save and stop; kill them at the second."""
        for id, (process, _) in self._working.items():
            if self._signals.count > 1:
                process.kill()
            elif id not in self._terminated:
                self._terminated.add(id)
                process.terminate()


def thread_variables(threads: int) -> dict[str, str]:
    """Environment variables that limit a process to a number of threads."""
    return {**dict.fromkeys(_THREAD_VARIABLES, str(threads)), "TOKENIZERS_PARALLELISM": "false"}


def cpu_slots(workers: int, threads: int) -> list[Slot]:
    """Slots with `threads` cores of this process each; slots share cores where there are too few."""
    cores = usable_cores()
    return [Slot(tuple(cores[(n * threads + i) % len(cores)] for i in range(threads))) for n in range(workers)]


def gpu_slots(gpus: Sequence[str], gpus_per_run: int, threads: int) -> list[Slot]:
    """Slots with `gpus_per_run` GPUs and `threads` cores each."""
    groups = [tuple(gpus[i : i + gpus_per_run]) for i in range(0, len(gpus) - gpus_per_run + 1, gpus_per_run)]
    return [Slot(slot.cpus, group) for slot, group in zip(cpu_slots(len(groups), threads), groups, strict=True)]

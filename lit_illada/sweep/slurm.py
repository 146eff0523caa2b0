"""Executes a sweep on a cluster: Slurm job arrays through submitit, one job per run, on one or more nodes.

At a time limit or an announced preemption, the run saves and submitit requeues its job. A job that Slurm itself
requeues keeps its id. In both cases the run resumes from its checkpoint.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lit_illada.errors import UserError
from lit_illada.runtime.files import write_atomically
from lit_illada.slurm.client import Outage, cancel, queued_jobs
from lit_illada.sweep.attempt import record_failure, was_stopped
from lit_illada.sweep.folder import PlannedRun, RunState, SweepFolder, SweepRunFolder, read_record
from lit_illada.sweep.pool import ONE, StopSignals, thread_variables
from lit_illada.sweep.progress import Overview, RunStatus

_LOOK_S = 2.0
# seconds by which a network file system may delay records
_GONE_S = 60.0
# seconds without an answer of the Slurm controller, which may be restarting or overloaded
_OUTAGE_S = 600.0
# longer than Slurm's KillWait: a job still alive after this was not being killed by Slurm
_KILL_WAIT_S = 120.0
# requeues at a time limit per job; each loses at most the work since the last checkpoint
_TIMEOUTS = 1000
_JOB_FILE = "job.json"


@dataclass(frozen=True)
class SlurmOptions:
    """Resources and limits of a job."""

    partition: str | None = None  # None: the cluster's default
    time_min: int = 24 * 60  # time limit in minutes
    gpus: int | None = None  # per node; None: the run's devices, if its accelerator is gpu
    cpus: int = 1  # per task
    at_once: int = 256  # jobs of an array that run at the same time
    other: dict[str, Any] = field(default_factory=dict)  # further parameters of sbatch, such as account or qos


class RunJob:
    """Callable that submitit pickles for a job; executes one run in a child process."""

    def __init__(self, command: Sequence[str], folder: str, run_id: str) -> None:
        self.command = [*command, folder, run_id]
        self.run_folder = SweepRunFolder(SweepFolder(Path(folder)).runs / run_id)
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Execute the run. Returns its exit status."""
        threads = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        self.run_folder.path.mkdir(parents=True, exist_ok=True)
        with self.run_folder.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **thread_variables(threads)},
                preexec_fn=_ignore_announcements,
            )
        status = self._process.wait()
        if was_stopped(status):
            # Slurm has signalled every process of the job and is about to kill or requeue it; it does not requeue a
            # job that has exited
            time.sleep(_KILL_WAIT_S)
        return status

    def checkpoint(self) -> Any:
        """Called by submitit at a time limit or preemption. Returns the submission that the requeued job executes."""
        import submitit

        if self._process is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)
            # this is a signal handler that has interrupted wait(): a second wait() here would deadlock
            while self.run_folder.is_locked():
                time.sleep(0.2)
        return submitit.helpers.DelayedSubmission(RunJob(self.command[:-2], *self.command[-2:]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}


class SlurmQueue:
    """Executes a plan by submitting runs as they become ready; the counterpart of Pool. A signal cancels its jobs.

    look_s: seconds between two looks at the queue. gone_s: seconds that a run's record may take to appear after its job
    has left the queue. outage_s: seconds without an answer from Slurm before UserError is raised.
    """

    def __init__(
        self,
        folder: SweepFolder,
        runs: Sequence[PlannedRun],
        options: SlurmOptions,
        show: Callable[[list[RunStatus]], None],
        metric: str,
        command: Sequence[str] = ONE,
        look_s: float = _LOOK_S,
        gone_s: float = _GONE_S,
        outage_s: float = _OUTAGE_S,
    ) -> None:
        require_slurm()
        self._folder = SweepFolder(folder.path.resolve())
        self._overview = Overview(self._folder, runs, metric)
        self._options = options
        self._show = show
        self._command = command
        self._look_s = look_s
        self._tried: set[str] = set()
        self._gone_s = gone_s
        self._gone_at: dict[str, float] = {}
        self._looking, self._submitting = Outage(outage_s), Outage(outage_s)
        self._failed_before = {s.run.id for s in self._overview.look() if s.state is RunState.FAILED}
        self._signals = StopSignals(signal.SIGINT, signal.SIGTERM)

    @property
    def was_stopped(self) -> bool:
        """Whether a signal stopped the sweep."""
        return self._signals.count > 0

    def run(self) -> list[RunStatus]:
        """Execute until all runs have ended, or until a signal has cancelled all jobs. Returns the final statuses."""
        with self._signals.handled():
            while True:
                queued = self._queued()
                statuses = self._overview.look()
                mine = {status.run.id for status in statuses if self._job_of(status.run) in queued}
                in_doubt = self._mark_lost(statuses, mine)
                self._show(statuses)
                if self._signals.count:
                    self._cancel(statuses, mine)
                    break
                ready = self._ready(statuses, mine)
                self._submit(ready)
                if not (mine or ready or in_doubt or any(s.state is RunState.RUNNING for s in statuses)):
                    break
                time.sleep(self._look_s)
        statuses = self._overview.look()
        self._show(statuses)
        return statuses

    def _queued(self) -> set[str]:
        """Ids of queued jobs. Waits during an outage; raises UserError after a long one, or at a second signal."""
        while (queued := self._looking.call(queued_jobs)) is None:
            if self._signals.count > 1:
                raise UserError(
                    "Slurm does not respond, so the jobs of the sweep were not cancelled: list them with squeue --me, "
                    "cancel them with scancel"
                )
            self._show(self._overview.look())
            time.sleep(self._look_s)
        return queued

    def _ready(self, statuses: Sequence[RunStatus], queued: set[str]) -> list[PlannedRun]:
        finished = {status.run.id for status in statuses if status.state is RunState.FINISHED}
        ready = []
        for status in statuses:
            run = status.run
            is_open = status.state in (RunState.PENDING, RunState.INTERRUPTED)
            is_open = is_open or (status.state is RunState.FAILED and run.id in self._failed_before)
            is_free = run.id not in self._tried and run.id not in queued and run.id not in finished
            if is_open and is_free and (run.parent is None or run.parent in finished):
                ready.append(run)
        return ready

    def _submit(self, runs: Sequence[PlannedRun]) -> None:
        """Submit one array per kind of machine.

        A rejected submission is repeated at the next look. Raises UserError if the first one is rejected, or later
        ones for longer than an outage.
        """
        arrays: dict[tuple[tuple[str, Any], ...], list[PlannedRun]] = {}
        for run in runs:
            arrays.setdefault(tuple(sorted(_machines(run, self._options).items())), []).append(run)
        for machines, members in arrays.items():
            submit = partial(self._submit_array, dict(machines), members)
            jobs = self._submitting.call(submit) if self._tried else submit()
            for run, job_id in zip(members, jobs, strict=True) if jobs is not None else ():
                self._tried.add(run.id)
                run_folder = self._folder.run_folder(run)
                run_folder.path.mkdir(parents=True, exist_ok=True)
                write_atomically(run_folder.path / _JOB_FILE, json.dumps({"job_id": job_id}) + "\n")

    def _submit_array(self, machines: dict[str, Any], runs: Sequence[PlannedRun]) -> list[str]:
        """Submit one array. Returns the job ids. Raises UserError with the message of sbatch if it is rejected."""
        import submitit

        executor = submitit.AutoExecutor(self._folder.path / "slurm", cluster="slurm", slurm_max_num_timeout=_TIMEOUTS)
        executor.update_parameters(
            name=self._folder.path.name,
            timeout_min=self._options.time_min,
            slurm_array_parallelism=self._options.at_once,
            slurm_additional_parameters=self._options.other,
            **({"slurm_partition": self._options.partition} if self._options.partition else {}),
            **machines,
        )
        try:
            with executor.batch():
                jobs = [executor.submit(RunJob(self._command, str(self._folder.path), run.id)) for run in runs]
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"sbatch failed: {' '.join(str(error).split())}") from error
        return [job.job_id for job in jobs]

    def _mark_lost(self, statuses: Sequence[RunStatus], queued: set[str]) -> bool:
        """Record failures of runs whose jobs left the queue without a record: out of memory, dead node, scancel.

        Returns whether some are still in doubt: a shared file system may show a record late.
        """
        in_doubt = False
        for status in statuses:
            run, now = status.run, time.monotonic()
            is_lost = run.id in self._tried and run.id not in queued
            if not is_lost or status.state not in (RunState.PENDING, RunState.INTERRUPTED):
                self._gone_at.pop(run.id, None)
            elif now - self._gone_at.setdefault(run.id, now) < self._gone_s:
                in_doubt = True
            else:
                record_failure(self._folder.run_folder(run), -1)
        return in_doubt

    def _cancel(self, statuses: Sequence[RunStatus], queued: set[str]) -> None:
        """Cancel the sweep's jobs and wait until they have left the queue."""
        jobs = {job for status in statuses if status.run.id in queued and (job := self._job_of(status.run))}
        is_cancelled = False
        while left := self._queued() & jobs:
            is_cancelled = is_cancelled or cancel(sorted(left))
            time.sleep(min(1.0, self._look_s))

    def _job_of(self, run: PlannedRun) -> str | None:
        return (read_record(self._folder.run_folder(run).path / _JOB_FILE) or {}).get("job_id")


def require_slurm() -> None:
    """Raise UserError if submitit is not installed or Slurm does not respond."""
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UserError("--slurm needs submitit: pip install 'lit-illada[slurm]'") from error
    queued_jobs()


def _machines(run: PlannedRun, options: SlurmOptions) -> dict[str, Any]:
    """Parameters of submitit for a run: one task per device, as Lightning expects under Slurm."""
    trainer = run.config.get("trainer", {})
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    wanted: dict[str, Any] = {"nodes": nodes, "tasks_per_node": devices, "cpus_per_task": options.cpus}
    accelerator = trainer.get("accelerator", run.config.get("accelerator"))
    gpus = options.gpus if options.gpus is not None else devices if accelerator == "gpu" else 0
    return {**wanted, "gpus_per_node": gpus} if gpus else wanted


def _ignore_announcements() -> None:
    # Slurm sends the signal before the time limit to every process of the job; its default action would kill the run
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)

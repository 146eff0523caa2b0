"""Job scripts in plain bash, which can be read, edited and submitted by hand.

Only the script of a training job requeues. At a signal the run saves a checkpoint and exits with a status that names
the signal; the script then asks Slurm to requeue the job, and the same command resumes from the checkpoint.
"""

import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_illada.errors import UserError
from lit_illada.runtime.ranks import command_line
from lit_illada.slurm.client import Allocation, option

_HEAD = """\
#!/bin/bash
# Written by lit-illada launch. {again}
{directives}

{setup}"""

_TRAINING = """\
# a free port on the node of rank 0; settings of NCCL are left to the site and to --setup
export MASTER_PORT=$({python} -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')

set +e +u +o pipefail  # undo options of the setup: a failing command must not end the script
newest() {{ ls {checkpoints} 2>/dev/null | tail -n 1; }}
preempted() {{ scontrol show job --oneliner "$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'; }}

trap : TERM USR1  # outlive the run, to read its exit status
before=$(newest)
srun {srun}{command}
status=$?

# Status {announced}: the run saved because its time limit was near. After a preemption Slurm requeues a job itself,
# unless the job exits within its grace time. A cancelled job, or one whose time limit is shorter than a training step,
# is not requeued.
if [ $status -ne 0 ] && {{ preempted || [ $status -eq {announced} -a "$(newest)" != "$before" ]; }}; then
  echo "requeueing job $SLURM_JOB_ID"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
"""

_DATA = """\
# every step can be killed and repeated; results of finished steps are reused
exec {command} "$1" --part "${{SLURM_ARRAY_TASK_ID:-0}}/{parts}" {overrides}
"""


@dataclass(frozen=True)
class Job:
    """Settings that all scripts have in common."""

    path: Path
    """File of the script."""
    name: str
    log: Path
    """File of the job's output, as a pattern of sbatch."""
    work_folder: Path
    """Working directory of the command."""
    allocation: Allocation
    setup: Sequence[str] = ()
    """Shell lines before the command."""
    save_before_s: int | None = None
    """Seconds before the time limit at which Slurm signals the job; None: never."""
    after: str | None = None
    """Id of a job that must succeed first."""

    def head(self, again: str) -> str:
        """The script's `#SBATCH` options and its setup. Raises UserError for an option set twice.

        again: instruction for submitting the script by hand, written into its first comment.
        """
        options = [
            option("job-name", self.name),
            option("output", self.log),
            "--open-mode=append",
            option("chdir", self.work_folder),
            "--requeue",
        ]
        if self.save_before_s is not None:
            options.append(f"--signal=USR1@{self.save_before_s}")
        if self.after is not None:
            options += [option("dependency", f"afterok:{self.after}"), "--kill-on-invalid-dep=yes"]
        own = [text.removeprefix("--").partition("=")[0] for text in options]
        if twice := next((name for name in self.allocation.other_names if name in own), None):
            raise UserError(f"--sbatch {twice}=…: the script sets --{twice} itself")
        options += self.allocation.options()
        threads = self.allocation.cpus_per_task
        setup = [*self.setup, *([] if threads is None else [f"export OMP_NUM_THREADS={threads}"])]
        return _HEAD.format(
            again=again,
            directives="\n".join(f"#SBATCH {text}" for text in options),
            setup="".join(f"{line}\n" for line in setup),
        )


def training_script(job: Job, checkpoints: Path, words: Sequence[str]) -> str:
    """Script of a training run. words: command line that starts the run, or resumes it from its newest checkpoint."""
    threads = job.allocation.cpus_per_task
    # srun does not inherit --cpus-per-task from the batch job
    srun = ["--kill-on-bad-exit=1", *([] if threads is None else [f"--cpus-per-task={threads}"])]
    again = f"Resume from the newest checkpoint with: sbatch {shlex.quote(str(job.path))}"
    return job.head(again) + _TRAINING.format(
        python=shlex.quote(sys.executable),
        checkpoints=shlex.quote(str(checkpoints)),
        srun="".join(f"{text} " for text in srun),
        command=shlex.join(command_line(*words)),
        announced=128 + signal.SIGUSR1,
    )


def preparation_script(job: Job, parts: int, overrides: Sequence[str]) -> str:
    """Script of one step of data preparation, named by its argument; each task of an array processes one part."""
    command = shlex.join(command_line("data", "part"))
    script = shlex.quote(str(job.path))
    again = f"Run one step by hand: sbatch --array=0-{parts - 1} {script} scan; plan and merge without --array"
    return job.head(again) + _DATA.format(command=command, parts=parts, overrides=shlex.join(overrides))

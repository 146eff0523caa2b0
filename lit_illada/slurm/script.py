"""What do the scripts say that Slurm is given? Plain bash, to be read, changed and submitted again by hand.

Requeueing has one owner, the script of a training job. The run itself only saves and leaves, with the status that tells
which signal it heeded; the script then asks Slurm for another turn, and the same command goes on from the checkpoint.
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
# a port that is free where rank 0 listens; NCCL's settings are the site's and yours: this script sets none
export MASTER_PORT=$({python} -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')

set +e +u +o pipefail  # a setup may have said otherwise; here no command's failure ends the script
newest() {{ ls {checkpoints} 2>/dev/null | tail -n 1; }}
preempted() {{ scontrol show job --oneliner "$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'; }}

trap : TERM USR1  # outlive the run, to see how it ended
before=$(newest)
srun {srun}{command}
status=$?

# {announced}: out of time, and saved. After a preemption Slurm requeues a job by itself, unless it is over before it
# must be. A job that was cancelled, or a limit too short for a single step, does not come back.
if [ $status -ne 0 ] && {{ preempted || [ $status -eq {announced} -a "$(newest)" != "$before" ]; }}; then
  echo "job $SLURM_JOB_ID goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
"""

_DATA = """\
# each step can be killed and done again; what a job before it has finished is kept
exec {command} "$1" --part "${{SLURM_ARRAY_TASK_ID:-0}}/{parts}" {overrides}
"""


@dataclass(frozen=True)
class Job:
    """What every script has.

    path: where the script goes. log: sbatch's pattern for the file of what is printed. work_folder: where the command
    runs. setup: lines of shell before it. save_before_s: so long before its time is over, a job is told; None: it is
    not. after: an id of a job that must have succeeded.
    """

    path: Path
    name: str
    log: Path
    work_folder: Path
    allocation: Allocation
    setup: Sequence[str] = ()
    save_before_s: int | None = None
    after: str | None = None

    def head(self, again: str) -> str:
        """What Slurm reads, and the setup. again: how the script is used by hand."""
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
            raise UserError(f"--sbatch {twice}=…: the script says --{twice} by itself")
        options += self.allocation.options()
        threads = self.allocation.cpus_per_task
        setup = [*self.setup, *([] if threads is None else [f"export OMP_NUM_THREADS={threads}"])]
        return _HEAD.format(
            again=again,
            directives="\n".join(f"#SBATCH {text}" for text in options),
            setup="".join(f"{line}\n" for line in setup),
        )


def training_script(job: Job, checkpoints: Path, words: Sequence[str]) -> str:
    """A run that goes on from its newest checkpoint, or begins. words: of the command that does so."""
    threads = job.allocation.cpus_per_task
    # srun does not take the batch job's --cpus-per-task over
    srun = ["--kill-on-bad-exit=1", *([] if threads is None else [f"--cpus-per-task={threads}"])]
    again = f"To go on from the newest checkpoint: sbatch {shlex.quote(str(job.path))}"
    return job.head(again) + _TRAINING.format(
        python=shlex.quote(sys.executable),
        checkpoints=shlex.quote(str(checkpoints)),
        srun="".join(f"{text} " for text in srun),
        command=shlex.join(command_line(*words)),
        announced=128 + signal.SIGUSR1,
    )


def preparation_script(job: Job, parts: int, overrides: Sequence[str]) -> str:
    """One step of preparing data, named by the script's argument; an array's task is a part."""
    command = shlex.join(command_line("data", "part"))
    script = shlex.quote(str(job.path))
    again = f"One step by hand: sbatch --array=0-{parts - 1} {script} scan; plan and merge without --array"
    return job.head(again) + _DATA.format(command=command, parts=parts, overrides=shlex.join(overrides))

"""Submits training and data preparation as Slurm jobs.

The config is composed, checked and written to the run's folder before the job is queued; the job resumes that folder
whenever it starts, the first time included.
"""

import dataclasses
import shlex
from collections.abc import Sequence
from datetime import datetime
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from lit_illada.checkpoints.start import load_align, load_pretrain, load_sft
from lit_illada.commands.resume import open_run
from lit_illada.config import RunConfig, load
from lit_illada.data.corpora.sources import files_of
from lit_illada.data.prepare.steps import begin
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.overrides import quoted
from lit_illada.run_folder import RunFolder
from lit_illada.runtime import plugins
from lit_illada.runtime.console import Console
from lit_illada.runtime.files import write_atomically
from lit_illada.runtime.terminal import print_content
from lit_illada.schema import dump, to_tree
from lit_illada.slurm import client
from lit_illada.slurm.client import Allocation
from lit_illada.slurm.script import Job, preparation_script, training_script
from lit_illada.training.config.trainer import Accelerator, TrainerConfig

_SCRIPT = "launch.sh"


@dataclasses.dataclass(frozen=True)
class Request:
    """Options of the `launch` commands. Raises UserError for a setup line with a line break."""

    allocation: Allocation
    nodes: int | None = None
    """None: as in the config's trainer."""
    gpus_per_node: int | None = None
    """None: as in the config's trainer."""
    setup: tuple[str, ...] = ()
    """Shell lines before the command."""
    after: str | None = None
    """Id of a job that must succeed first."""
    save_before_s: int = 120
    """Seconds before the time limit at which a run saves."""
    is_dry: bool = False
    """Print the script instead of submitting it."""

    def __post_init__(self) -> None:
        if wrong := [line for line in self.setup if "\n" in line]:
            raise UserError(f"--setup {wrong[0]!r}: repeat --setup, one line each")

    def overrides(self, given: Sequence[str]) -> list[str]:
        """Overrides of the trainer for the nodes and GPUs. Raises UserError if `given` sets them too."""
        wanted = [] if self.nodes is None else [("--nodes", "trainer.num_nodes", str(self.nodes))]
        if self.gpus_per_node:
            wanted.append(("--gpus-per-node", "trainer.devices", str(self.gpus_per_node)))
            wanted.append(("--gpus-per-node", "trainer.accelerator", Accelerator.gpu.value))
        for option, key, _ in wanted:
            if twice := next((text for text in given if text.startswith(f"{key}=")), None):
                raise UserError(f"{twice} and {option} set the same value: give one of them")
        return [f"{key}={value}" for _, key, value in wanted]


def submit_training(
    command: str, base: Path | None, overrides: Sequence[str], resume: Path | None, request: Request
) -> None:
    """Submit a pretraining, fine-tuning or alignment run, new or resumed.

    Raises UserError for an invalid config, for a script that Slurm rejects, and where Slurm is not installed.
    """
    words = [*overrides, *request.overrides(overrides)]
    config: RunConfig
    if resume is not None:
        config, folder, _ = open_run(command, resume, words)
        _require_slurm(request, [command, "--resume", str(resume), *words], config)
        _submit_run(command, config, folder, words, request)
        return
    tokenizer = None
    if command == "pretrain":
        config, _ = load_pretrain(words)
    else:
        if base is None:
            verb = {"sft": "fine-tune"}.get(command, command)
            raise UserError(f"nothing to {verb}: give a checkpoint, or --resume RUN")
        config, checkpoint = load_align(base, words) if command == "align" else load_sft(base, words)
        tokenizer = checkpoint.tokenizer
    _require_slurm(request, [command, *([] if base is None else [str(base)]), *words], config)
    _submit_new(command, config, tokenizer, request)


def _submit_new(command: str, config: RunConfig, tokenizer: Tokenizer | None, request: Request) -> None:
    """Create the folder of a new run and submit it."""
    now = datetime.now()
    if request.is_dry:
        folder = RunFolder(Path(config.run_dir or f"runs/{config.name}-{now:%Y%m%d-%H%M%S}"))
        _submit_run(command, config, folder, _named_again(config), request)
        return
    # sbatch --test-only, before the run folder is created: a rejected job leaves nothing behind
    client.check(_script(command, config, RunFolder(Path(config.run_dir or "runs/new")), [], request))
    folder = RunFolder.create(config.run_dir, config.name, now)
    if tokenizer is not None:
        tokenizer.save(folder.tokenizer)
    folder.write_config(dump(dataclasses.replace(config, run_dir=str(folder.path))))
    _submit_run(command, config, folder, _named_again(config), request)


def _submit_run(command: str, config: RunConfig, folder: RunFolder, words: Sequence[str], request: Request) -> None:
    """Write the script into the run folder and submit it; only print it for a dry run."""
    script = _script(command, config, folder, words, request)
    if request.is_dry:
        print_content(script, end="")
        return
    path = folder.path / _SCRIPT
    write_atomically(path, script)
    job = client.submit(path)
    trainer = config.trainer
    each = f"{trainer.devices} GPUs" if _is_on_gpus(trainer) else f"{trainer.devices} processes without a GPU"
    _print_job(
        f"job {job}: {command} on {trainer.num_nodes} × {each}, in {folder.path}",
        {
            "follow": f"tail -F {shlex.quote(str(folder.path / f'slurm-{job}.log'))}",
            "status": f"squeue --job {job}",
            "cancel": f"scancel {job}",
            "requeue": f"scancel --signal=USR1 {job}   (saves and requeues)",
            "resume": f"sbatch {shlex.quote(str(path))}   (from the last checkpoint)",
        },
    )


def _script(command: str, config: RunConfig, folder: RunFolder, words: Sequence[str], request: Request) -> str:
    """The job script: one task per device, GPUs only if the config uses them."""
    path = folder.path.absolute()
    trainer = config.trainer
    allocation = dataclasses.replace(
        request.allocation,
        nodes=trainer.num_nodes,
        ntasks_per_node=trainer.devices,
        gpus_per_node=trainer.devices if _is_on_gpus(trainer) else None,
    )
    job = Job(
        path=path / _SCRIPT,
        name=config.name,
        log=_pattern(path, "slurm-%j.log"),
        work_folder=Path.cwd(),
        allocation=allocation,
        setup=request.setup,
        save_before_s=request.save_before_s,
        after=request.after,
    )
    return training_script(job, path / folder.checkpoints.name, [command, "--resume", str(path), *words])


def _named_again(config: RunConfig) -> list[str]:
    """KEY=VALUE of the users' classes and permissions in a config, which a saved config alone does not grant."""
    tree = to_tree(config)
    words: dict[str, str] = {}
    for key, part, is_listed in plugins.parts_of(config):
        permissions = [item.name for item in dataclasses.fields(part) if item.metadata.get("needs_permission")]
        words |= {f"{key}.{name}": "true" for name in permissions if getattr(part, name)}
        if (name := plugins.name_of(type(part))) is not None:
            words[key if is_listed else f"{key}.name"] = (
                quoted(reduce(getitem, key.split("."), tree)) if is_listed else quoted(name)
            )
    return [f"{key}={value}" for key, value in words.items()]


def _is_on_gpus(trainer: TrainerConfig) -> bool:
    return trainer.accelerator is Accelerator.gpu


def submit_preparation(overrides: Sequence[str], parts: int, at_once: int | None, request: Request) -> None:
    """Submit a preparation as four dependent jobs: scan (array), plan, write (array), merge."""
    config = load("data", overrides).data
    parts = min(parts, len(files_of(config.source)))
    where = Path(config.dir).absolute()
    folder = where / "slurm"
    job = Job(
        path=folder / "prepare.sh",
        name=f"prepare-{where.name}",
        log=_pattern(folder, "%x-%A-%a.log"),
        work_folder=Path.cwd(),
        allocation=request.allocation,
        setup=request.setup,
    )
    script = preparation_script(job, parts, overrides)
    if request.is_dry:
        print_content(script, end="")
        return
    if not client.is_available():
        prepare = ["lit-illada", "data", "prepare", *overrides, "--workers", str(parts)]
        raise UserError(f"Slurm (sbatch) is not installed here; to run on this machine: {shlex.join(prepare)}")
    client.check(script)
    if begin(config) is not None:
        raise UserError(f"{config.dir} is already prepared with these settings")
    folder.mkdir(exist_ok=True)
    write_atomically(job.path, script)
    array = f"--array=0-{parts - 1}" + ("" if at_once is None else f"%{at_once}")
    jobs: dict[str, str] = {}
    before = request.after
    for step in ("scan", "plan", "write", "merge"):
        options = [f"--job-name={step}-{where.name}", *([array] if step in ("scan", "write") else [])]
        if before is not None:
            options += [f"--dependency=afterok:{before}", "--kill-on-invalid-dep=yes"]
        before = jobs[step] = client.submit(job.path, step, options=options)
    _print_job(
        f"jobs {', '.join(f'{id} ({step})' for step, id in jobs.items())}: {parts} parts, into {config.dir}",
        {
            "follow": f"tail -F {shlex.quote(str(folder))}/*.log",
            "status": f"squeue --job {','.join(jobs.values())}",
            "cancel": f"scancel {' '.join(jobs.values())}",
            "resume": "the same command again; finished parts are reused",
            "train": f"lit-illada launch pretrain … data.dir={config.dir} --after {jobs['merge']}",
        },
    )


def _require_slurm(request: Request, words: Sequence[str], config: RunConfig) -> None:
    """Raise UserError with the equivalent torchrun command where there is no Slurm."""
    if request.is_dry or client.is_available():
        return
    trainer = config.trainer
    missing = "Slurm (sbatch) is not installed here"
    ours = ["-m", "lit_illada", *words]
    each = ["torchrun", "--nproc-per-node", str(trainer.devices)]
    if trainer.world_size == 1:
        raise UserError(f"{missing}; to run on this machine: {shlex.join(['python', *ours])}")
    if trainer.num_nodes == 1:
        raise UserError(f"{missing}; to run on this machine: {shlex.join([*each, '--standalone', *ours])}")
    rendezvous = f"--nnodes {trainer.num_nodes} --rdzv-backend c10d --rdzv-endpoint FIRST_NODE:29400"
    raise UserError(f"{missing}; run on every node: {shlex.join(each)} {rendezvous} {shlex.join(ours)}")


def _pattern(folder: Path, name: str) -> Path:
    """A file name with sbatch placeholders, in a folder whose own `%` are escaped."""
    return Path(str(folder).replace("%", "%%")) / name


def _print_job(headline: str, commands: dict[str, Any]) -> None:
    """Print a submitted job with the commands to follow, cancel and resume it."""
    console = Console()
    console.print(headline, highlight=False, soft_wrap=True)
    for heading, text in commands.items():
        console.print(f"{heading:<8} {text}", highlight=False, soft_wrap=True)

"""The `sweep run` command: plans a sweep and executes its runs on this machine or through Slurm."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_illada.checkpoints.open import folder_files, open_checkpoint
from lit_illada.checkpoints.start import add_model_of_checkpoint
from lit_illada.commands.data import prepare_dataset
from lit_illada.commands.sweep_slots import Workers, slots_of
from lit_illada.config import SCHEMAS, AlignConfig, compose_tree
from lit_illada.cost.alignment import step_forwards
from lit_illada.cost.run_cost import expected_vocab_size, step_flops
from lit_illada.data.config import DataConfig
from lit_illada.errors import UserError
from lit_illada.runtime.checksums import file_checksum
from lit_illada.runtime.console import Console
from lit_illada.schema import from_tree, to_tree
from lit_illada.sweep.design import tuning_text
from lit_illada.sweep.folder import PlannedRun, RunState, SweepFolder, read_record
from lit_illada.sweep.library import begin_path, read_spec
from lit_illada.sweep.plan import Costs, Tree, expand, set_in
from lit_illada.sweep.pool import SERVER, Pool
from lit_illada.sweep.progress import RunStatus
from lit_illada.sweep.progress_table import SweepTable, summary
from lit_illada.sweep.slurm import SlurmQueue, require_slurm
from lit_illada.sweep.spec import PAPER, Command, Measure, SweepSpec
from lit_illada.sweep.variants import (
    failed_values,
    is_tuning,
    read_choice,
    tuning_means,
    tuning_runs,
    without_failed,
    write_choice,
)


def run_sweep(name: str, overrides: Sequence[str], folder: Path | None, is_resumed: bool, workers: Workers) -> None:
    """Run a sweep on this machine or through Slurm. Exits as `SweepOutcome.end` does."""
    execute(name, overrides, folder, is_resumed, workers).end("lit-illada sweep run {} --resume")


@dataclass(frozen=True)
class SweepOutcome:
    """State of a sweep after its execution."""

    sweep_folder: SweepFolder
    statuses: list[RunStatus]
    at_once: int
    was_stopped: bool  # by the user

    @property
    def is_finished(self) -> bool:
        """Whether every run has finished."""
        return not self.unfinished

    @property
    def unfinished(self) -> list[PlannedRun]:
        """Runs that have not finished."""
        return [status.run for status in self.statuses if status.state is not RunState.FINISHED]

    @property
    def has_ended(self) -> bool:
        """Whether no run is left to execute: each has finished, has failed, or depends on a failed one."""
        ends = (RunState.FINISHED, RunState.FAILED)
        return not self.was_stopped and all(each.state in ends or each.waits_for for each in self.statuses)

    def end(self, resume: str) -> None:
        """Print the outcome. Raises SystemExit(1) if a run failed, SystemExit(130) if the user stopped the sweep.

        resume: command that resumes the sweep, with {} in place of its folder.
        """
        console = Console()
        for status in self.statuses:
            if status.state is RunState.FAILED:
                log = self.sweep_folder.run_folder(status.run).log
                console.print(f"\n{status.run.id} failed; last lines of {log}:", highlight=False)
                for line in status.last_lines:
                    console.print(f"    {line}", highlight=False, soft_wrap=True)
        lines = {
            self.sweep_folder.path: summary(self.statuses, self.at_once),
            "curves": f"lit-illada board {self.sweep_folder.runs}",
        }
        if not self.is_finished:
            lines["resume"] = resume.format(self.sweep_folder.path)
        for heading, text in lines.items():
            console.print(f"{heading!s:<12} {text}", highlight=False, soft_wrap=True)
        if not self.is_finished:
            raise SystemExit(130 if self.was_stopped else 1)


def execute(
    name: str, overrides: Sequence[str], folder: Path | None, is_resumed: bool, workers: Workers
) -> SweepOutcome:
    """Execute every unfinished run of a sweep, on this machine or through Slurm, with a progress table.

    Raises UserError for an invalid sweep, and for failed or interrupted runs in its folder unless `is_resumed`.
    """
    console = Console()
    spec, sweep_folder, runs = plan_sweep(name, overrides, folder)
    if hint := scale_hint(spec, sweep_folder):
        console.print(f"scale        {hint}", highlight=False, soft_wrap=True)
    if workers.slurm is not None:
        require_slurm()
    require_resume(sweep_folder, runs, is_resumed)
    require_all_begun(spec, sweep_folder, runs)
    for config in data_configs(runs):
        prepare_dataset(config, Console(stderr=True))
    if spec.budget is not None and spec.budget.measure is Measure.FLOPS:
        # the vocabulary size, and so the FLOPs, are known only now
        spec, sweep_folder, runs = plan_sweep(name, overrides, folder)
    if spec.tune is not None and read_choice(sweep_folder, spec) is None:
        outcome = run_all(spec, sweep_folder, tuning_runs(spec, runs), workers)
        if not outcome.has_ended:
            return outcome
        choose_values(spec, outcome, console)
        runs = expanded(spec, sweep_folder)
    return run_all(spec, sweep_folder, runs, workers)


def choose_values(spec: SweepSpec, tuning: SweepOutcome, console: Console) -> None:
    """Write and print the value of the tuned key of each arm, and the values with a failed run, which are not chosen.

    Too large a learning rate may diverge: that is a result of the tuning. Raises UserError for an arm without a value,
    and for a run that was killed, which says nothing about its value.
    """
    assert spec.tune is not None
    folder = tuning.sweep_folder
    records = {run.id: read_record(folder.run_folder(run).failed) or {} for run in tuning.unfinished}
    if killed := [id for id, record in records.items() if record.get("exit_status", 1) < 0]:
        raise UserError(
            f"{', '.join(killed)} was killed, for example for too little memory, which says nothing about its value of "
            f"{spec.tune.key}: resume with --resume"
        )
    failed = failed_values(spec, tuning.unfinished)
    runs = [status.run for status in tuning.statuses]
    means = tuning_means(spec, tuning.sweep_folder, runs, failed)
    for arm, values in failed.items():
        for value in values:
            text = f"{arm}: {spec.tune.key.rpartition('.')[2]}={value:g} failed and is not chosen"
            console.print(f"{'tuned':<12} {text}", highlight=False, soft_wrap=True)
    chosen = write_choice(spec, tuning.sweep_folder, means, failed)
    console.print(f"{'tuned':<12} {tuning_text(spec, chosen)}", highlight=False, soft_wrap=True)


def run_all(spec: SweepSpec, sweep_folder: SweepFolder, runs: Sequence[PlannedRun], workers: Workers) -> SweepOutcome:
    """Write the plan and execute its unfinished runs."""
    console, slurm = Console(), workers.slurm
    sweep_folder.write(spec, runs)
    metric = spec.metrics[0].name
    slots = [] if slurm is not None else slots_of(runs, workers)
    at_once = len(slots) if slurm is None else min(slurm.at_once, len(runs))
    with SweepTable(f"{spec.name}: {spec.question}", metric, at_once, console) as table:
        pool: Pool | SlurmQueue = (
            Pool(sweep_folder, runs, slots, table.show, metric, server=SERVER)
            if slurm is None
            else SlurmQueue(sweep_folder, runs, slurm, table.show, metric)
        )
        statuses = pool.run()
    return SweepOutcome(sweep_folder, list(statuses), at_once, pool.was_stopped)


def scale_hint(spec: SweepSpec, sweep_folder: SweepFolder) -> str:
    """The small scale that can be chosen instead of the full size; empty for other scales and for a started sweep."""
    if spec.scale != PAPER or sweep_folder.plan.is_file():
        return ""
    return f"{PAPER}, the full size; for a test in minutes on two CPU cores add +scale=nano"


def require_resume(sweep_folder: SweepFolder, runs: Sequence[PlannedRun], is_resumed: bool) -> None:
    """Raise UserError if the folder holds failed or interrupted runs and is not resumed."""
    broken = [run.id for run in runs if sweep_folder.state_of(run) in (RunState.FAILED, RunState.INTERRUPTED)]
    if broken and not is_resumed:
        raise UserError(
            f"{sweep_folder.path} holds {len(broken)} run{'s' * (len(broken) > 1)} that did not finish "
            f"({', '.join(broken[:3])}{', …' * (len(broken) > 3)}): resume with --resume, or choose another --folder"
        )


def require_all_begun(spec: SweepSpec, sweep_folder: SweepFolder, runs: Sequence[PlannedRun]) -> None:
    """Raise UserError if runs of the folder's plan have begun that are not among these: no report would show them.

    Tuning runs may be left out.
    """
    if not sweep_folder.plan.is_file():
        return
    before, planned = sweep_folder.read_spec(), sweep_folder.read_plan()
    exempt = {run.id for run in (*runs, *tuning_runs(before, planned))}
    left_out = [r.id for r in planned if r.id not in exempt and sweep_folder.state_of(r) is not RunState.PENDING]
    if left_out:
        seeds = sorted({*before.seeds, *spec.seeds})
        listed = f"name all seeds, seeds=[{','.join(map(str, seeds))}]"
        fix = "keep its arms and settings" if seeds == sorted(spec.seeds) else listed
        raise UserError(
            f"{sweep_folder.path} holds {len(left_out)} run{'s' * (len(left_out) > 1)} that this plan leaves out "
            f"({', '.join(left_out[:3])}{', …' * (len(left_out) > 3)}): {fix}, or choose another --folder"
        )


def data_configs(runs: Iterable[PlannedRun]) -> list[DataConfig]:
    """Distinct data sets that the runs read."""
    configs: dict[str, DataConfig] = {}
    for run in runs:
        if run.command == Command.PRETRAIN:
            config = from_tree(DataConfig, run.config["data"], "data.")
            # two contents of one folder are both listed, and the second is refused before anything trains
            content = (config.source, config.tokenizer, config.validation_fraction, config.shard_tokens)
            configs.setdefault(repr((config.dir, *content, config.on_bad_document)), config)
    return list(configs.values())


def resolve(command: str, overrides: Sequence[str], parent: Tree | None, settle: Callable[[Tree], Tree]) -> Tree:
    """Validated config of a command; fine-tuning and alignment take the model of the preceding stage, pretraining that
    of `init_from`."""
    if command == Command.PRETRAIN:
        overrides, _ = add_model_of_checkpoint(overrides)
    tree = compose_tree(command, overrides)
    if command in (Command.SFT, Command.ALIGN):
        assert parent is not None
        model = dict(parent["model"])
        if model["vocab_size"] is None and "data" in parent:
            model["vocab_size"] = expected_vocab_size(parent["data"])
        tree = {**tree, "model": model}
    for key, value in settle(tree).items():
        set_in(tree, key, value)
    config: Any = from_tree(SCHEMAS[command], tree)
    return to_tree(config.resolve() if isinstance(config, AlignConfig) else config)


def open_begin(begin_from: str) -> tuple[Tree, str]:
    """Model of the checkpoint that a sweep starts from, and a hash of its content. Raises UserError without one."""
    checkpoint = open_checkpoint(begin_path(begin_from))
    return {"model": to_tree(checkpoint.model)}, _sha256(checkpoint.path)


def _sha256(checkpoint: Path) -> str:
    """Hash of a checkpoint's file, or of the names and checksums of the files of a sharded one."""
    if checkpoint.is_dir():
        listing = [(str(file.relative_to(checkpoint)), file_checksum(file)) for file in folder_files(checkpoint)]
        return hashlib.sha256(repr(listing).encode()).hexdigest()
    with checkpoint.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plan_sweep(
    name: str, overrides: Sequence[str], folder: Path | None
) -> tuple[SweepSpec, SweepFolder, list[PlannedRun]]:
    """Spec, folder and runs of a sweep: as planned when it was started, or newly planned."""
    begun_folder = SweepFolder(Path(name))
    if begun_folder.plan.is_file() and not overrides and folder in (None, begun_folder.path):
        # a started sweep keeps its plan, even if config files have changed since
        spec, runs = begun_folder.read_spec(), begun_folder.read_plan()
        return spec, begun_folder, expanded(spec, begun_folder) if is_tuning(spec, runs) else runs
    spec = read_spec(name, overrides)
    if folder is None:
        folder = begun_folder.path if begun_folder.plan.is_file() else Path("runs") / "sweeps" / spec.name
    sweep_folder = SweepFolder(folder)
    return spec, sweep_folder, expanded(spec, sweep_folder)


def expanded(spec: SweepSpec, sweep_folder: SweepFolder) -> list[PlannedRun]:
    """Runs of a sweep, with the ids of those that its folder holds and the values chosen by its tuning runs."""
    begun, chosen = dict(sweep_folder.begun()), read_choice(sweep_folder, spec)
    runs = expand(spec, resolve, Costs(step_flops, step_forwards), begun, open_begin, chosen)
    return without_failed(spec, sweep_folder, runs)

"""The `sweep plan` command: prints the runs of a sweep and what they cost."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from lit_illada.commands.sweep import (
    plan_sweep,
    scale_hint,
)
from lit_illada.commands.sweep_slots import Workers, accelerator_of, devices_of, slots_of, visible_gpus
from lit_illada.cost.run_cost import disk_bytes, memory_bytes
from lit_illada.cost.run_time import Speed, speed_of
from lit_illada.runtime.console import Console
from lit_illada.runtime.durations import duration
from lit_illada.sweep.design import describe
from lit_illada.sweep.folder import PlannedRun, RunState, SweepFolder
from lit_illada.sweep.progress import Overview, RunStatus
from lit_illada.sweep.spec import SweepSpec
from lit_illada.sweep.variants import read_choice, replicates, tuning_runs


def print_plan(name: str, overrides: Sequence[str], folder: Path | None, workers: Workers) -> None:
    """Print the runs of a sweep, the stages they share, and their cost."""
    spec, sweep_folder, runs = plan_sweep(name, overrides, folder)
    statuses = Overview(sweep_folder, runs, spec.metrics[0].name).look()
    console = Console()
    _print_head(spec, sweep_folder, console)
    speed = speed_of(statuses, accelerator_of(runs, is_required=False), workers.threads)
    console.print(_runs_table(runs, spec, speed), highlight=False)
    slots = slots_of(runs, workers, is_required=False)
    _print_costs(statuses, speed, len(slots), console)


def _print_head(spec: SweepSpec, sweep_folder: SweepFolder, console: Console) -> None:
    """Print the question and design of a sweep."""
    budget = "none: " + spec.no_budget
    if spec.budget is not None:
        budget = f"{spec.budget.amount:.3g} {spec.budget.measure} in stage {spec.budget_stage}"
    lines = {
        "question": spec.question,
        "paper": spec.paper,
        "arms": f"{len(spec.all_arms())}, baseline {spec.baseline}",
        "seeds": ", ".join(map(str, spec.seeds)),
        "budget": budget,
        "scale": scale_hint(spec, sweep_folder) or spec.scale or "none",
        **describe(spec, read_choice(sweep_folder, spec)),
        "folder": str(sweep_folder.path),
    }
    for heading, text in lines.items():
        console.print(f"{heading:<12} {text}", highlight=False, soft_wrap=True)


def _runs_table(runs: Sequence[PlannedRun], spec: SweepSpec, speed: Speed) -> Table:
    """One row per stage and group of arms that share its runs."""
    table = Table()
    table.add_column("runs", overflow="fold")
    for heading in ("seeds", "used by", "steps", "tokens", "FLOPs", "time each"):
        if heading == "used by":
            table.add_column(heading, max_width=8)  # "noise floor" takes two lines, so that 80 columns hold the table
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    groups: dict[tuple[str, tuple[str, ...]], list[PlannedRun]] = {}
    copies, tuning = {each.name for each in replicates(spec)}, {run.id for run in tuning_runs(spec, runs)}
    for run in runs:
        arms = (f"{spec.baseline} again",) if set(run.arms) <= copies else tuple(run.arms)
        groups.setdefault((run.stage, arms), []).append(run)
    num_arms = len(spec.all_arms())
    for (_, arms), members in groups.items():
        first = members[0]
        used_by = (
            "" if num_arms == 1 or len(arms) == 1 else "all arms" if len(arms) == num_arms else f"{len(arms)} arms"
        )
        used_by = "tuning" if first.id in tuning else "noise floor" if set(first.arms) <= copies else used_by
        expected_s = speed.seconds(first)
        table.add_row(
            first.id.removesuffix(f"-s{first.seed}"),
            "same" if first.seed is None else str(len(members)),
            used_by,
            f"{first.num_steps:,}" if first.num_steps else "",
            f"{first.tokens:.3g}" if first.tokens else "",
            f"{first.flops:.3g}" if first.flops else "",
            duration(expected_s) if expected_s is not None else "",
        )
    return table


def _print_costs(statuses: Sequence[RunStatus], speed: Speed, workers: int, console: Console) -> None:
    """Print number, duration, disk space and memory of the runs."""
    left = [status.run for status in statuses if status.state is not RunState.FINISHED]
    expected = [seconds for run in left if (seconds := speed.seconds(run)) is not None]
    num_unknown = len(left) - len(expected)
    unknown = f", plus {num_unknown} runs whose length is not known yet" if num_unknown else ""
    shared = sum(1 for status in statuses if len(status.run.arms) > 1)
    disk = sum(disk_bytes(status.run.config) for status in statuses if "model" in status.run.config)
    memory = max((memory_bytes(status.run.config) for status in statuses if "model" in status.run.config), default=0.0)
    if workers:
        time = f"about {duration(sum(expected) / workers)} with {workers} at a time{unknown}"
    else:
        needed, found = devices_of([status.run for status in statuses]), len(visible_gpus())
        time = f"does not fit this machine: {needed} devices per run, {found} found"
    lines = {
        "runs": f"{len(statuses)}, {shared} shared by several arms, {len(statuses) - len(left)} already finished",
        "time": time,
        "": speed.origin,
        "disk": f"about {disk / 1e9:,.1f} GB of checkpoints",
        "memory": f"about {memory / 1e9:,.1f} GB per run",
    }
    for heading, text in lines.items():
        console.print(f"{heading:<12} {text}", highlight=False, soft_wrap=True)

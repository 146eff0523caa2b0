"""The `sweep` commands: `list`, `plan`, `run`, `report`, `calibrate`, `publish` and `check`."""

import sys
from pathlib import Path

import click

from lit_illada.cli.frame import guarded
from lit_illada.errors import UserError

_overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
_folder = click.option(
    "--folder", type=click.Path(path_type=Path), help="Folder of the sweep (default: runs/sweeps/NAME)."
)
_workers = click.option(
    "--workers", type=click.IntRange(min=1), help="Runs at a time (default: as many as cores, memory or GPUs allow)."
)
_threads = click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Cores per run.")


@click.group()
def sweep() -> None:
    """Compare settings (arms) over several seeds, with the same budget and validation metric."""


@sweep.command("list", epilog="\b\nExample:\n  lit-illada sweep list\n")
@guarded
def sweep_list() -> None:
    """List the sweeps that come with the package, with their questions."""
    from lit_illada.sweep.library import print_library

    print_library()


@sweep.command(
    "plan",
    epilog="""\b
Examples:
  lit-illada sweep plan mask_ratio
  lit-illada sweep plan mask_ratio +scale=nano seeds=[0,1] budget.amount=2e5
""",
)
@click.argument("name")
@_folder
@_workers
@_threads
@_overrides
@guarded
def sweep_plan(name: str, folder: Path | None, workers: int | None, threads: int, overrides: tuple[str, ...]) -> None:
    """Print the runs of the sweep NAME, their time, disk space and memory, without running them."""
    from lit_illada.sweep.library import refuse_early

    refuse_early(name, overrides)

    from lit_illada.commands.sweep_plan import print_plan
    from lit_illada.commands.sweep_slots import Workers

    print_plan(name, overrides, folder, Workers(workers, threads))


@sweep.command(
    "run",
    epilog="""\b
Examples:
  lit-illada sweep run mask_ratio +scale=nano
  lit-illada sweep run mine.yaml seeds=[0,1] --workers 4
  lit-illada sweep run runs/sweeps/mask_ratio --resume
  lit-illada sweep run mask_ratio --slurm --partition gpu --sbatch account=me
""",
)
@click.argument("name")
@_folder
@click.option("--resume", "is_resumed", is_flag=True, help="Resume interrupted runs and retry failed ones.")
@_workers
@_threads
@click.option(
    "--slurm", "is_slurm", is_flag=True, help="Submit the runs as Slurm job arrays (needs the extra `slurm`)."
)
@click.option("--partition", help="Slurm partition (default: the cluster's default).")
@click.option(
    "--time-min",
    type=click.IntRange(min=1),
    default=1440,
    show_default=True,
    help="Time limit of a Slurm job, in minutes.",
)
@click.option("--gpus", type=click.IntRange(min=0), help="GPUs per Slurm node (default: the run's trainer.devices).")
@click.option("--sbatch", multiple=True, metavar="KEY=VALUE", help="Further sbatch option: account=me. Repeatable.")
@_overrides
@guarded
def sweep_run(
    name: str,
    folder: Path | None,
    is_resumed: bool,
    workers: int | None,
    threads: int,
    is_slurm: bool,
    partition: str | None,
    time_min: int,
    gpus: int | None,
    sbatch: tuple[str, ...],
    overrides: tuple[str, ...],
) -> None:
    """Run the sweep NAME: one of `sweep list`, a YAML file, or the folder of a started sweep.

    Finished runs are not repeated. At Ctrl-C every run saves and stops. With --slurm, each run is a job with the nodes
    and devices of its trainer; it is requeued after preemption or a time limit and resumes from its checkpoint.
    """
    from lit_illada.sweep.library import refuse_early

    refuse_early(name, overrides)

    from lit_illada.commands.sweep import run_sweep
    from lit_illada.commands.sweep_slots import Workers
    from lit_illada.sweep.slurm import SlurmOptions

    slurm = None
    if is_slurm:
        if wrong := next((text for text in sbatch if "=" not in text), None):
            raise UserError(f"--sbatch {wrong}: write KEY=VALUE, such as account=me")
        other = dict(text.split("=", 1) for text in sbatch)
        slurm = SlurmOptions(partition, time_min, gpus, threads, workers or 256, other)
    run_sweep(name, overrides, folder, is_resumed, Workers(workers, threads, slurm))


@sweep.command(
    "report",
    epilog="""\b
Examples:
  lit-illada sweep report mask_ratio
  lit-illada sweep report runs/sweeps/mask_ratio --out report --open
""",
)
@click.argument("sweep")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the report (default: report in the sweep's folder)."
)
@click.option("--open", "is_opened", is_flag=True, help="Open the page in the browser.")
@guarded
def sweep_report(sweep: str, out: Path | None, is_opened: bool) -> None:
    """Write the report of SWEEP (its folder, or its name in runs/sweeps): a page, tables and figures.

    Works at any time during or after the runs, and on a copy of the folder on another machine.
    """
    from lit_illada.commands.sweep_report import run_report

    page = run_report(sweep, out)
    if is_opened:
        click.launch(str(page))


@sweep.command(
    "calibrate",
    epilog="""\b
Example:
  lit-illada sweep calibrate runs/sweeps/pilot --plan sweeps/PLAN.md
""",
)
@click.argument("sweep")
@click.option(
    "--plan",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Plan whose entry of this sweep is replaced, such as sweeps/PLAN.md.",
)
@guarded
def sweep_calibrate(sweep: str, plan: Path | None) -> None:
    """Print noise floor, spread over seeds and the seeds needed, from the pilot SWEEP (a folder or a name).

    The sweep names its primary_contrasts, equivalence_margin (the smallest effect that matters) and noise_floor.
    """
    from lit_illada.commands.sweep_report import calibrate

    calibrate(sweep, plan)


@sweep.command(
    "publish",
    epilog="""\b
Example:
  lit-illada sweep publish runs/sweeps/mask_ratio
""",
)
@click.argument("sweep")
@click.option("--results", type=click.Path(path_type=Path), help="Folder of all results (default: sweeps/results).")
@guarded
def sweep_publish(sweep: str, results: Path | None) -> None:
    """Write the tables and figures of the finished SWEEP to results/NAME, with its commit.

    All runs must be of one commit without uncommitted changes.
    """
    from lit_illada.commands.sweep_report import publish

    publish(sweep, results)


@sweep.command("check", epilog="\b\nExample:\n  lit-illada sweep check\n")
@click.argument("results", type=click.Path(path_type=Path), required=False)
@_workers
@_threads
@guarded
def sweep_check(results: Path | None, workers: int | None, threads: int) -> None:
    """Train one cheap run of every committed result in RESULTS (default: sweeps/results) and compare its figure.

    Superseded results are listed but not checked. The exit status is 1 if a figure differs by more than twice the
    noise floor of its sweep.
    """
    from lit_illada.commands.sweep_check import check_results
    from lit_illada.commands.sweep_slots import Workers
    from lit_illada.runtime.paths import sweeps_dir

    check_results(results or sweeps_dir() / "results", Workers(workers, threads))


@sweep.command("one", hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("run_id")
@click.pass_context
@guarded
def sweep_one(context: click.Context, folder: Path, run_id: str) -> None:
    """Execute one run of a planned sweep in this process, as the pool and Slurm jobs do."""
    from lit_illada.sweep.attempt import attempt
    from lit_illada.sweep.folder import SweepFolder

    main = context.find_root().command

    def call(words: list[str]) -> int:
        try:
            main.main(words, prog_name="lit-illada", standalone_mode=False)
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except (click.Abort, KeyboardInterrupt):
            return 130
        return 0

    raise SystemExit(attempt(SweepFolder(folder), run_id, call))


@sweep.command("serve", hidden=True)
@click.pass_context
@guarded
def sweep_serve(context: click.Context) -> None:
    """Import what runs need, then fork for each run that the pool requests on standard input."""
    import lit_illada.commands.align
    import lit_illada.commands.pretrain
    import lit_illada.commands.score
    import lit_illada.commands.sft  # noqa: F401
    from lit_illada.config_files import compose_files
    from lit_illada.sweep.fork_server import serve

    for command in ("pretrain", "sft", "align", "score"):
        compose_files(command)  # loads Hydra's parser and the files of conf/
    if (request := serve()) is not None:
        # as in a process of its own: the launcher of further ranks reads sys.argv
        sys.argv[1:] = ["sweep", "one", request.folder, request.id]
        context.find_root().command.main(sys.argv[1:], prog_name="lit-illada")

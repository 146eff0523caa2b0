"""The commands `sweep report`, `calibrate` and `publish`, which read a sweep's folder. They do not import torch."""

from pathlib import Path

from lit_illada.errors import UserError, unknown
from lit_illada.runtime.console import Console
from lit_illada.runtime.paths import sweeps_dir
from lit_illada.sweep import published
from lit_illada.sweep.folder import SweepFolder
from lit_illada.sweep.report import calibration, write_report

_SWEEPS = Path("runs") / "sweeps"


def run_report(sweep: str, out: Path | None) -> Path:
    """Write the report and print its findings. Returns the file of the page.

    Args:
        sweep: folder of a sweep, or its name in runs/sweeps.
        out: folder of the report; None: `report` in the sweep's folder.

    Raises:
        UserError: there is no such sweep.
    """
    page, findings = write_report(_find(sweep), out)
    console = Console()
    for line in findings:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"page         {page}", highlight=False, soft_wrap=True)
    return page


def calibrate(sweep: str, plan: Path | None) -> None:
    """Print the calibration of a pilot sweep, and write it to the plan. Raises UserError as `run` does."""
    name, lines = calibration.calibrate(_find(sweep))
    console = Console()
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    if plan is not None:
        calibration.write_calibration(plan, name, lines)
        console.print(f"written      {plan}", highlight=False, soft_wrap=True)


def publish(sweep: str, results: Path | None) -> None:
    """Write the results of a finished sweep to be committed. results: None: sweeps/results. Raises UserError."""
    out = published.publish(_find(sweep), results or sweeps_dir() / "results")
    Console().print(f"results      {out}", highlight=False, soft_wrap=True)


def _find(sweep: str) -> Path:
    """Folder of a sweep, given as such or by its name in runs/sweeps."""
    folder = next((path for path in (Path(sweep), _SWEEPS / sweep) if SweepFolder(path).plan.is_file()), None)
    if folder is None:
        begun = [plan.parent.name for plan in _SWEEPS.glob("*/plan.json")]
        if not begun:
            raise UserError(
                f"{sweep}: not the folder of a sweep, and {_SWEEPS} holds none; start one with: "
                "lit-illada sweep run NAME"
            )
        raise unknown("sweep", sweep, begun)
    return folder

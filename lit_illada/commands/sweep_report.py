"""The `sweep report` command: writes the report of a sweep's folder. Does not import torch."""

from pathlib import Path

from lit_illada.errors import UserError, unknown
from lit_illada.runtime.console import Console
from lit_illada.sweep.folder import SweepFolder
from lit_illada.sweep.report import write_report

_SWEEPS = Path("runs") / "sweeps"


def run(sweep: str, out: Path | None) -> Path:
    """Write the report and print its findings. Returns the file of the page.

    Args:
        sweep: folder of a sweep, or its name in runs/sweeps.
        out: folder of the report; None: `report` in the sweep's folder.

    Raises:
        UserError: there is no such sweep.
    """
    folder = next((path for path in (Path(sweep), _SWEEPS / sweep) if SweepFolder(path).plan.is_file()), None)
    if folder is None:
        begun = [plan.parent.name for plan in _SWEEPS.glob("*/plan.json")]
        if not begun:
            raise UserError(
                f"{sweep}: not the folder of a sweep, and {_SWEEPS} holds none; start one with: "
                "lit-illada sweep run NAME"
            )
        raise unknown("sweep", sweep, begun)
    page, findings = write_report(folder, out)
    console = Console()
    for line in findings:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"page         {page}", highlight=False, soft_wrap=True)
    return page

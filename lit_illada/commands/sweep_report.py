"""The `sweep report` command: a sweep's files in, a page with tables and pictures out. Imports no torch."""

from pathlib import Path

from lit_illada.errors import UserError, unknown
from lit_illada.runtime.console import Console
from lit_illada.sweep.folder import SweepFolder
from lit_illada.sweep.report import write_report

_SWEEPS = Path("runs") / "sweeps"


def run(sweep: str, out: Path | None) -> Path:
    """The page's file. Raises UserError for what is neither a sweep's folder nor the name of one in runs/sweeps."""
    folder = next((path for path in (Path(sweep), _SWEEPS / sweep) if SweepFolder(path).plan.is_file()), None)
    if folder is None:
        begun = [plan.parent.name for plan in _SWEEPS.glob("*/plan.json")]
        if not begun:
            raise UserError(
                f"{sweep}: no sweep there, and none in {_SWEEPS}; begin one with: lit-illada sweep run NAME"
            )
        raise unknown("sweep", sweep, begun)
    page, findings = write_report(folder, out)
    console = Console()
    for line in findings:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"page         {page}", highlight=False, soft_wrap=True)
    return page

"""The command `loops analyze`: files in; a table, a file of records and a page out."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lit_illada.errors import UserError
from lit_illada.loops.analysis import Summary, group_keys, summaries
from lit_illada.loops.config import LoopConfig, LoopsConfig
from lit_illada.loops.outcome import Outcome, as_record, outcome
from lit_illada.loops.records import Fields, read_generations
from lit_illada.loops.report import write_report
from lit_illada.loops.spans import Kind
from lit_illada.share import conf_dir
from lit_illada.tree import read_file

REPORT, RECORDS = "report.html", "records.jsonl"


def run(words: Sequence[str], out: Path, fields: Fields, encoding: str | None) -> None:
    """Look at every generation of the files."""
    files, overrides = tell_apart(words)
    config = read_file(LoopsConfig, conf_dir() / "loops.yaml", overrides).loops
    console = Console()
    outcomes = look(files, fields, encoding, config, console)
    out.mkdir(parents=True, exist_ok=True)
    with (out / RECORDS).open("w", encoding="utf-8") as file:
        for found in outcomes:
            file.write(json.dumps(as_record(found), ensure_ascii=False) + "\n")
    keys = group_keys(outcomes, fields.groups)
    write_report(out / REPORT, outcomes, keys, config)
    for table in tables(summaries(outcomes, keys), keys):
        console.print(table)
    if "length" in keys:
        console.print("Rates at different lengths do not compare: a longer text has more room to loop.", style="dim")
    console.print(f"records      {out / RECORDS}\npage         {out / REPORT}", highlight=False, soft_wrap=True)


def tell_apart(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files and overrides: what exists, or holds no '=', is a file."""
    is_file = [Path(word).exists() or "=" not in word for word in words]
    files = [Path(word) for word, yes in zip(words, is_file, strict=True) if yes]
    if not files:
        raise UserError("no file is named: give files or folders of generations before KEY=VALUE")
    return files, [word for word, yes in zip(words, is_file, strict=True) if not yes]


def look(
    files: Sequence[Path], fields: Fields, encoding: str | None, config: LoopConfig, console: Console
) -> list[Outcome]:
    """Every generation's outcome, with a progress bar on a terminal."""
    found = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("looking for loops", total=None)
        for generation in read_generations(files, fields, encoding):
            found.append(outcome(generation, config))
            progress.update(task, advance=1, description=f"looking for loops: {len(found):,} texts")
    return found


def tables(groups: Sequence[Summary], keys: Sequence[str]) -> list[Table]:
    """How often, and what it costs."""
    first = " · ".join(keys) or "group"
    often = Table(title="Loops, with Wilson's 95 % intervals", title_justify="left")
    for heading in (first, "texts", "any loop", "exact run"):
        often.add_column(heading, justify="left" if heading == first else "right")
    others = (Kind.near_exact, Kind.statement, Kind.circling, Kind.overflow, Kind.runaway, Kind.budget)
    for kind in others:
        often.add_column(kind.replace("_", "\n"), justify="right")
    cost = Table(title="What they cost", title_justify="left")
    for heading in (
        first,
        "right, looped",
        "right, others",
        "right, exact run",
        "right, no such",
        "right before",
        "wasted",
        "steps",
    ):
        cost.add_column(heading, justify="left" if heading == first else "right")
    for group in groups:
        shares = [f"{100 * group.kinds[kind].share:.1f}%" for kind in others]
        often.add_row(group.name, f"{group.num_texts:,}", str(group.loop), str(group.exact_run), *shares)
        rates = (
            group.looped_right,
            group.other_right,
            group.exact_right,
            group.exact_other_right,
            group.right_before,
        )
        shown = [f"{rate.hits}/{rate.tries}  {100 * rate.share:.1f}%" if rate.tries else "–" for rate in rates]
        forwards = f"{group.wasted_forwards:,.0f}" if group.wasted_forwards is not None else "–"
        cost.add_row(group.name, *shown, f"{100 * group.wasted:.1f}%", forwards)
    return [often, cost]

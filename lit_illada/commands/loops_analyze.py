"""The command `loops analyze`: reads generations, prints tables, and writes records, effects and a page."""

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import chain, islice
from pathlib import Path

from rich.progress import Progress

from lit_illada.errors import UserError
from lit_illada.loops.compare.comparisons import Pair, check_pairs, effects, usual_pairs
from lit_illada.loops.compare.summaries import group_keys, summaries
from lit_illada.loops.config import LoopConfig, LoopsConfig
from lit_illada.loops.outcome import Outcome, as_record
from lit_illada.loops.parallel import num_usable_processes, outcomes_of
from lit_illada.loops.records import ARM, Fields, read_generations
from lit_illada.loops.report.tables import effect_tables, group_tables, write_effects
from lit_illada.loops.report.write import write_report
from lit_illada.runtime.console import Console
from lit_illada.runtime.paths import conf_dir
from lit_illada.runtime.terminal import printable
from lit_illada.schema import read_file

REPORT, RECORDS, EFFECTS = "report.html", "records.jsonl", "effects.csv"


def run_analyze(
    words: Sequence[str],
    out: Path,
    fields: Fields,
    encoding: str | None,
    pairs: Sequence[Pair] = (),
    arms: Sequence[tuple[str, Path]] = (),
    planned: Sequence[Pair] | None = None,
) -> None:
    """Analyzes every generation of the files.

    Args:
        words: files, folders and config overrides.
        out: folder of the output.
        fields: names of the records' fields.
        encoding: of the files; None: UTF-8, or UTF-16 with a byte-order mark.
        pairs: groups to compare on the same problems; empty: the default pairs.
        arms: (name of a condition, file or folder), instead of files.
        planned: as pairs, but some may be missing from the files.
    """
    files, overrides = split_words(words)
    sources = _sources(files, arms)
    config = read_file(LoopsConfig, conf_dir() / "loops.yaml", overrides).loops
    console = Console()
    outcomes = analyze(sources, fields, encoding, config, console, out / RECORDS)
    keys = group_keys(outcomes, fields.groups)
    if len(dict(arms)) > 1 and ARM not in keys:
        keys.append(ARM)
    check_pairs(pairs, outcomes, keys)
    compared = effects(outcomes, keys, pairs or planned or (usual_pairs(list(dict(arms))) if arms else None))
    out.mkdir(parents=True, exist_ok=True)
    write_effects(out / EFFECTS, compared)  # first, as this file identifies the folder of an analysis
    with (out / RECORDS).open("w", encoding="utf-8") as file:
        for each in outcomes:
            file.write(json.dumps(as_record(each), ensure_ascii=False) + "\n")
    groups = summaries(outcomes, keys)
    write_report(out / REPORT, outcomes, keys, config, groups, compared)
    for table in [*group_tables(groups, keys), *effect_tables(compared)]:
        console.print(table)
    for remark in compared.remarks:
        console.print(f"Note: {printable(str(remark))}.", highlight=False)
    if "length" in keys:
        console.print(
            "Rates at different lengths are not comparable: a longer text has more opportunity to loop.", style="dim"
        )
    for what, path in (("records", out / RECORDS), ("effects", out / EFFECTS), ("page", out / REPORT)):
        console.print(f"{what:<12} {printable(str(path))}", highlight=False, soft_wrap=True)


def split_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files and overrides: a word that exists as a path, or has no '=', is a file."""
    is_file = [Path(word).exists() or "=" not in word for word in words]
    files = [Path(word) for word, yes in zip(words, is_file, strict=True) if yes]
    return files, [word for word, yes in zip(words, is_file, strict=True) if not yes]


def _sources(files: Sequence[Path], arms: Sequence[tuple[str, Path]]) -> dict[str | None, list[Path]]:
    """The files by arm; None: the files name their arms, or there are none."""
    if bool(files) == bool(arms):
        raise UserError(
            "no file given: name files or folders of generations, or each with a condition by --arm NAME FILE"
            if not files
            else f"{files[0]} has no condition, unlike the others: give --arm NAME {files[0]}"
        )
    sources: dict[str | None, list[Path]] = {None: list(files)} if files else {}
    for name, path in arms:
        if not name.strip():
            raise UserError(f"--arm: the name for {path} is empty")
        if path.resolve() in (other.resolve() for other in sources.get(name, [])):
            raise UserError(f"--arm {name}: {path} is given twice")
        sources.setdefault(name, []).append(path)
    return sources


def analyze(
    sources: Mapping[str | None, Sequence[Path]],
    fields: Fields,
    encoding: str | None,
    config: LoopConfig,
    console: Console,
    records: Path | None = None,
) -> list[Outcome]:
    """The outcomes of all generations, in several processes if there are many, with a progress bar on a terminal.

    sources: files by arm; None: the files name it. records: output of an earlier analysis, which is skipped.
    """
    generations = chain.from_iterable(
        read_generations(files, fields, encoding, records, arm) for arm, files in sources.items()
    )
    with (
        _without_cycle_search(),
        closing(outcomes_of(generations, config, num_usable_processes())) as detected,
    ):
        outcomes = list(islice(detected, 1))  # starts the processes, which must not copy the thread of the progress bar
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("detecting loops", total=None)
            for each in detected:
                outcomes.append(each)
                progress.update(task, advance=1, description=f"detecting loops: {len(outcomes):,} texts")
    return outcomes


@contextmanager
def _without_cycle_search() -> Iterator[None]:
    """Turns off Python's search for cyclic garbage, a tenth of the time: outcomes are many objects without cycles."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

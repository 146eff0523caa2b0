"""The command `loops analyze`: files in; a table, a file of records and a page out."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lit_illada.errors import UserError
from lit_illada.loops.analysis import Summary, group_keys, summaries
from lit_illada.loops.config import LoopConfig, LoopsConfig
from lit_illada.loops.effects import Effect, Effects, effects, points
from lit_illada.loops.outcome import Outcome, as_record, outcome
from lit_illada.loops.records import ARM, Fields, read_generations
from lit_illada.loops.report import write_report
from lit_illada.loops.spans import Kind
from lit_illada.loops.statistics import Rate
from lit_illada.share import conf_dir
from lit_illada.tree import read_file

REPORT, RECORDS, EFFECTS = "report.html", "records.jsonl", "effects.csv"
_EFFECT_COLUMNS = (
    "compared where first second endless_first texts_first endless_second texts_second difference low_95 high_95 "
    "p_holm verdict each_seed only_first only_second mcnemar_p right_first right_second right_difference right_low_95 "
    "right_high_95 harmed ended_right_first healed endless_wrong_first length_first length_second"
).split()


def run(
    words: Sequence[str],
    out: Path,
    fields: Fields,
    encoding: str | None,
    pairs: Sequence[tuple[str, str]] = (),
    arms: Sequence[tuple[str, Path]] = (),
) -> None:
    """Look at every generation of the files.

    pairs: the groups to compare on the same problems, instead of the usual ones. arms: the name of a condition, and the
    file or folder of its generations.
    """
    files, overrides = tell_apart(words)
    if not files and not arms:
        raise UserError("no file is named: give files or folders of generations before KEY=VALUE")
    config = read_file(LoopsConfig, conf_dir() / "loops.yaml", overrides).loops
    console = Console()
    sources = [*([(None, files)] if files else []), *((name, [path]) for name, path in arms)]
    outcomes = look(sources, fields, encoding, config, console, out / RECORDS)
    keys = group_keys(outcomes, fields.groups)
    compared = effects(outcomes, keys, pairs)
    out.mkdir(parents=True, exist_ok=True)
    with (out / RECORDS).open("w", encoding="utf-8") as file:
        for found in outcomes:
            file.write(json.dumps(as_record(found), ensure_ascii=False) + "\n")
    write_report(out / REPORT, outcomes, keys, config, compared)
    write_effects(out / EFFECTS, compared)
    for table in [*tables(summaries(outcomes, keys), keys), *effect_tables(compared)]:
        console.print(table)
    if "length" in keys:
        console.print("Rates at different lengths do not compare: a longer text has more room to loop.", style="dim")
    told = {"records": out / RECORDS, "effects": out / EFFECTS, "page": out / REPORT}
    for what, path in told.items():
        console.print(f"{what:<12} {path}", highlight=False, soft_wrap=True)


def tell_apart(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files and overrides: what exists, or holds no '=', is a file."""
    is_file = [Path(word).exists() or "=" not in word for word in words]
    files = [Path(word) for word, yes in zip(words, is_file, strict=True) if yes]
    return files, [word for word, yes in zip(words, is_file, strict=True) if not yes]


def look(
    sources: Sequence[tuple[str | None, Sequence[Path]]],
    fields: Fields,
    encoding: str | None,
    config: LoopConfig,
    console: Console,
    records: Path | None = None,
) -> list[Outcome]:
    """Every generation's outcome, with a progress bar on a terminal. sources: files, and the arm that they are of where
    that is told. records: of an earlier look."""
    found = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("looking for loops", total=None)
        for arm, files in sources:
            for generation in read_generations(files, fields, encoding, records):
                if arm is not None:
                    generation = replace(generation, groups={**generation.groups, ARM: arm})
                found.append(outcome(generation, config))
                progress.update(task, advance=1, description=f"looking for loops: {len(found):,} texts")
    return found


def tables(groups: Sequence[Summary], keys: Sequence[str]) -> list[Table]:
    """How often, of which kind, and how many are right; each fits a terminal of 80 columns."""
    first = " · ".join(keys) or "group"
    seen = [kind for kind in Kind if any(group.kinds[kind].hits for group in groups)]
    names = [first, *(group.name for group in groups)]
    often = _table("Loops, with Wilson's 95 % intervals", names, ["texts", "any loop", "exact run", "wasted"])
    kinds = _table("By kind; a text may be of several", names, [kind.replace("_", "\n") for kind in seen])
    right = _table("How many are right", names, ["looped", "others", "exact run", "no exact run"])
    for group in groups:
        wasted = f"{100 * group.wasted:.1f}%"
        often.add_row(group.name, f"{group.num_texts:,}", str(group.loop), str(group.exact_run), wasted)
        kinds.add_row(group.name, *(f"{100 * group.kinds[kind].share:.1f}%" for kind in seen))
        accuracies = (group.looped_right, group.other_right, group.exact_right, group.exact_other_right)
        right.add_row(group.name, *map(_share_of, accuracies))
    is_judged = any(group.looped_right.tries + group.other_right.tries for group in groups)
    return [often, *([kinds] if seen else []), *([right] if is_judged else []), *_written(groups, names)]


def _written(groups: Sequence[Summary], names: Sequence[str]) -> list[Table]:
    """Of chained arithmetic: whether what re-checks still reasons."""
    if not any("share_well_formed" in group.secondary for group in groups):
        return []
    table = _table("How it is written, means", names, ["phrases of self-\ncorrection a text", "well-formed\nlines"])
    for group in groups:
        phrases, share = (group.secondary.get(name) for name in ("phrases", "share_well_formed"))
        told = [f"{phrases:.1f}" if phrases is not None else "–", f"{100 * share:.1f}%" if share is not None else "–"]
        table.add_row(group.name, *told)
    return [table]


def write_effects(path: Path, compared: Effects) -> None:
    """What the tables of effects say, one line each, shares as fractions."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(_EFFECT_COLUMNS)
        for what, found in (("levels", compared.harder), ("the same problems", compared.same)):
            for item in found:
                rates = [item.first_rate.hits, item.first_rate.tries, item.second_rate.hits, item.second_rate.tries]
                shares = [f"{share:.4f}" for share in (item.difference, item.low, item.high)]
                said = [*shares, f"{item.p_value:.4g}", item.verdict]
                seeds = " ".join(f"{share:.4f}" for share in item.by_seed.values())
                pairs = item.paired
                told = [pairs.only_first, pairs.only_second, f"{pairs.p_value:.4g}"] if pairs else [""] * 3
                table.writerow(
                    [what, item.where, item.first, item.second, *rates, *said, seeds, *told, *_besides(item)]
                )


def _besides(item: Effect) -> list[object]:
    found = item.besides
    if found is None:
        return [""] * 11
    right = found.right
    shares = (found.first_right.share, found.second_right.share, right.value, right.low, right.high) if right else ()
    judged = [f"{share:.4f}" for share in shares] if right else [""] * 5
    counts = [found.harmed.hits, found.harmed.tries, found.healed.hits, found.healed.tries]
    return [*judged, *counts, f"{found.first_length:.2f}", f"{found.second_length:.2f}"]


def effect_tables(compared: Effects) -> list[Table]:
    """What changes the share of endless texts: harder problems, and other conditions on the same problems."""
    found = []
    if harder := compared.harder:
        title = f"Endless (looping or never stopping), {harder[0].first} → {harder[0].second}, points, 95 %"
        table = _table(title, ["condition", *(item.where for item in harder)], ["easiest", "hardest", "difference", ""])
        for item in harder:
            rates = (f"{100 * rate.share:.0f}%" for rate in (item.first_rate, item.second_rate))
            table.add_row(item.where, *rates, str(item), item.verdict)
        found.append(table)
    if pairs := compared.same:
        names = [f"{item.first} → {item.second}" for item in pairs]
        headings = ["difference", "", "ended", "made\nendless"]
        table = _table("Endless, on the same problems, points, 95 %", ["conditions", *names], headings)
        for name, item in zip(names, pairs, strict=True):
            assert item.paired is not None
            table.add_row(name, str(item), item.verdict, *item.paired.changes)
        found += [table, *_cost_tables(pairs, names)]
    return found


def _cost_tables(pairs: Sequence[Effect], names: Sequence[str]) -> list[Table]:
    """What ends endless texts may cost right answers, and save tokens."""
    headings = ["right, points", "harmed", "healed", "length"]
    table = _table("Right on the same problems, points, 95 %", ["conditions", *names], headings)
    for name, item in zip(names, pairs, strict=True):
        found = item.besides
        assert found is not None
        right = found.right
        told = "–" if right is None else f"{points(right.value)} ({points(right.low)} to {points(right.high)})"
        changes = [f"{rate.hits} of {rate.tries}" for rate in (found.harmed, found.healed)]
        table.add_row(name, told, *changes, f"{found.first_length:.0f} → {found.second_length:.0f}")
    table.caption = "harmed: right and ended before, wrong now; healed: right instead of endless"
    table.caption_justify = "left"
    return [table]


def _table(title: str, names: Sequence[str], others: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    longest = max(len(word) for name in names for word in name.split())
    table.add_column(names[0], overflow="fold", min_width=min(longest, 24))
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _share_of(rate: Rate) -> str:
    return f"{100 * rate.share:.1f}% of {rate.tries:,}" if rate.tries else "–"

"""Tables of an analysis, on the terminal and as CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from lit_illada.loops.compare.comparisons import Effects, PairedEffect, SideEffects
from lit_illada.loops.compare.effects import Effect, points
from lit_illada.loops.compare.summaries import Summary
from lit_illada.loops.detect.spans import Kind
from lit_illada.runtime.terminal import printable
from lit_illada.stats.intervals import Rate

_EFFECT_COLUMNS = (
    "compared where first second endless_first texts_first endless_second texts_second difference low_95 high_95 "
    "p_holm verdict each_seed only_first only_second mcnemar_p right_first right_second right_difference right_low_95 "
    "right_high_95 harmed right_and_ended_first healed wrong_and_endless_first mean_length_first mean_length_second"
).split()


def group_tables(groups: Sequence[Summary], keys: Sequence[str]) -> list[Table]:
    """Rates of loops, kinds and accuracies; each table fits a terminal of 80 columns."""
    first = " · ".join(keys) or "group"
    seen = [kind for kind in Kind if any(group.kinds[kind].hits for group in groups)]
    names = [first, *(group.name for group in groups)]
    often = _table("Loops, with Wilson's 95 % intervals", names, ["texts", "any loop", "exact run", "wasted"])
    kinds = _table("By kind; a text can have several", names, [kind.replace("_", "\n") for kind in seen])
    right = _table("Accuracy", names, ["looped", "others", "exact run", "no exact run"])
    for group in groups:
        wasted = f"{100 * group.wasted:.1f}%"
        often.add_row(_cell(group.name), f"{group.num_texts:,}", str(group.loop), str(group.exact_run), wasted)
        kinds.add_row(_cell(group.name), *(f"{100 * group.kinds[kind].share:.1f}%" for kind in seen))
        accuracies = (group.looped_right, group.other_right, group.exact_right, group.exact_other_right)
        right.add_row(_cell(group.name), *map(_share_of, accuracies))
    is_judged = any(group.looped_right.tries + group.other_right.tries for group in groups)
    return [often, *([kinds] if seen else []), *([right] if is_judged else []), *_written(groups, names)]


def _written(groups: Sequence[Summary], names: Sequence[str]) -> list[Table]:
    """The table of re-checks and well-formed lines; empty for tasks other than chained arithmetic."""
    if not any("share_well_formed" in group.secondary for group in groups):
        return []
    table = _table("Reasoning, means", names, ["phrases of self-\ncorrection per text", "well-formed\nlines"])
    for group in groups:
        phrases, share = (group.secondary.get(name) for name in ("phrases", "share_well_formed"))
        cells = [f"{phrases:.1f}" if phrases is not None else "–", f"{100 * share:.1f}%" if share is not None else "–"]
        table.add_row(_cell(group.name), *cells)
    return [table]


def write_effects(path: Path, compared: Effects) -> None:
    """Writes all effects as CSV, one row per comparison, rates as fractions."""
    rows = [{"compared": "levels", **_cells(item)} for item in compared.harder]
    rows += [
        {
            "compared": "the same problems",
            **_cells(item),
            **_paired_cells(item),
            **_side_effect_cells(item.side_effects),
        }
        for item in compared.same
    ]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, _EFFECT_COLUMNS)
        table.writeheader()
        table.writerows(rows)


def _cells(item: Effect) -> dict[str, object]:
    return {
        "where": item.where,
        "first": item.first,
        "second": item.second,
        "endless_first": item.first_rate.hits,
        "texts_first": item.first_rate.tries,
        "endless_second": item.second_rate.hits,
        "texts_second": item.second_rate.tries,
        "difference": f"{item.difference:.4f}",
        "low_95": f"{item.low:.4f}",
        "high_95": f"{item.high:.4f}",
        "p_holm": f"{item.p_value:.4g}",
        "verdict": item.verdict,
        "each_seed": " ".join(f"{share:.4f}" for share in item.by_seed.values()),
    }


def _paired_cells(item: PairedEffect) -> dict[str, object]:
    pairs = item.paired
    return {"only_first": pairs.only_first, "only_second": pairs.only_second, "mcnemar_p": f"{pairs.p_value:.4g}"}


def _side_effect_cells(item: SideEffects) -> dict[str, object]:
    right = item.right
    judged = {
        "right_first": item.first_right.share,
        "right_second": item.second_right.share,
        "right_difference": right.value if right else 0.0,
        "right_low_95": right.low if right else 0.0,
        "right_high_95": right.high if right else 0.0,
    }
    return {
        **{name: f"{share:.4f}" if right else "" for name, share in judged.items()},
        "harmed": item.harmed.hits,
        "right_and_ended_first": item.harmed.tries,
        "healed": item.healed.hits,
        "wrong_and_endless_first": item.healed.tries,
        "mean_length_first": f"{item.first_length:.2f}",
        "mean_length_second": f"{item.second_length:.2f}",
    }


def effect_tables(compared: Effects) -> list[Table]:
    """Tables of the effects of difficulty, and of conditions on the same problems."""
    tables = []
    if harder := compared.harder:
        title = f"Endless (looping or not stopping), {harder[0].first} → {harder[0].second}, points, 95 %"
        table = _table(title, ["condition", *(item.where for item in harder)], ["easiest", "hardest", "difference", ""])
        for item in harder:
            rates = (f"{100 * rate.share:.0f}%" for rate in (item.first_rate, item.second_rate))
            table.add_row(_cell(item.where), *rates, str(item), item.verdict)
        tables.append(table)
    if pairs := compared.same:
        names = [f"{item.first} → {item.second}" for item in pairs]
        if len({item.where for item in pairs}) > 1:
            names = [f"{item.where}: {name}" for item, name in zip(pairs, names, strict=True)]
        headings = ["difference", "", "ended", "made\nendless"]
        table = _table("Endless, on the same problems, points, 95 %", ["conditions", *names], headings)
        for name, paired in zip(names, pairs, strict=True):
            table.add_row(_cell(name), str(paired), paired.verdict, *paired.paired.changes)
        tables += [table, _side_effect_table(pairs, names)]
    return tables


def _side_effect_table(pairs: Sequence[PairedEffect], names: Sequence[str]) -> Table:
    """Effects on accuracy and length, since ending endless texts can cost right answers."""
    lengths = [f"{item.side_effects.first_length:.0f} → {item.side_effects.second_length:.0f}" for item in pairs]
    if all(item.side_effects.right is None for item in pairs):
        table = _table("Length on the same problems", ["conditions", *names], ["mean length"])
        for name, length in zip(names, lengths, strict=True):
            table.add_row(_cell(name), length)
        return table
    title = "Right on the same problems, points, 95 % intervals, not corrected"
    table = _table(title, ["conditions", *names], ["difference", "harmed", "healed", "mean length"])
    for name, item, length in zip(names, pairs, lengths, strict=True):
        effects = item.side_effects
        right = effects.right
        change = "–" if right is None else f"{points(right.value)} ({points(right.low)} to {points(right.high)})"
        changes = [f"{rate.hits} of {rate.tries}" if rate.tries else "–" for rate in (effects.harmed, effects.healed)]
        table.add_row(_cell(name), change, *changes, length)
    table.caption = "harmed: right and not endless before, wrong now; healed: endless and wrong before, right now"
    table.caption_justify = "left"
    return table


def _table(title: str, names: Sequence[str], others: Sequence[str]) -> Table:
    table = Table(title=_cell(title), title_justify="left")
    longest = max(len(word) for name in names for word in name.split())
    table.add_column(_cell(names[0]), overflow="fold", min_width=min(longest, 24))
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _share_of(rate: Rate) -> str:
    return f"{100 * rate.share:.1f}% of {rate.tries:,}" if rate.tries else "–"


def _cell(text: str) -> str:
    """A name from a file on one line: the console escapes all else, but leaves line breaks."""
    return printable(text)

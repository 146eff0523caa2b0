"""Summaries of many generations: how often, where and how long they loop, and what it costs."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lit_illada.loops.compare.effects import ABSENT, SEED, natural
from lit_illada.loops.detect.spans import Kind
from lit_illada.loops.outcome import Outcome
from lit_illada.loops.records import FILE
from lit_illada.stats.intervals import Rate, mean_over_seeds, share_variance


@dataclass(frozen=True)
class Summary:
    """Counts of one group of texts."""

    name: str
    num_texts: int
    loop: Rate  # any kind of loop
    endless: Rate  # a loop, or no stop within the budget
    exact_run: Rate  # exact runs of any period, the narrow definition of other reports
    kinds: dict[Kind, Rate]  # a text may be of several kinds
    presets: dict[str, Rate]  # definitions of the literature
    self_correction: Rate
    escaped: Rate
    terminal: Rate
    forced_closure: Rate
    template: Rate
    looped_right: Rate  # accuracy of looping texts
    other_right: Rate  # accuracy of other texts
    exact_right: Rate  # accuracy of texts with an exact run
    exact_other_right: Rate  # accuracy of texts without one
    right_before: Rate  # of looping texts: the right answer precedes the onset
    seed_interval: tuple[float, float] | None  # of `loop`, for a model of another seed; None: a single seed
    wasted: float  # fraction of units that are copies
    wasted_units: int
    wasted_forwards: float | None
    median_length: float
    secondary: dict[str, float]


@dataclass(frozen=True)
class SamePrompts:
    """Accuracy with and without a loop on prompts with both kinds of texts, which equalises their difficulty."""

    num_prompts: int
    looped_right: float  # mean accuracy of the looping texts
    other_right: float  # mean accuracy of the other texts


def has_exact_run(item: Outcome) -> bool:
    """Whether a text has an exact run of any period, the narrow definition of a loop."""
    return not item.kinds.isdisjoint((Kind.flood, Kind.exact))


def group_keys(outcomes: Sequence[Outcome], requested: Sequence[str] = ()) -> list[str]:
    """Fields to group texts by: those requested; else all that vary, except seeds; else the file."""
    if requested:
        return list(requested)
    values: dict[str, dict[str, None]] = defaultdict(dict)
    for item in outcomes:
        for key, value in item.generation.groups.items():
            values[key][value] = None
    varied = [key for key, seen in values.items() if len(seen) > 1 and key not in (SEED, FILE)]
    return varied or [next((key for key in values if key not in (SEED, FILE)), FILE)]


def by_group(outcomes: Sequence[Outcome], keys: Sequence[str]) -> dict[tuple[str, ...], list[Outcome]]:
    """Texts by the combination of their values of the keys, numbers in ascending order."""
    cells: dict[tuple[str, ...], list[Outcome]] = defaultdict(list)
    for item in outcomes:
        cells[tuple(item.generation.groups.get(key, ABSENT) for key in keys)].append(item)
    return dict(sorted(cells.items(), key=lambda cell: [natural(value) for value in cell[0]]))


def summaries(outcomes: Sequence[Outcome], keys: Sequence[str]) -> list[Summary]:
    """One summary per cell; of all texts without keys."""
    if not keys:
        return [summary("all", outcomes)]
    cells = by_group(outcomes, keys)
    return [summary(cell_name(keys, cell), items) for cell, items in cells.items()]


def cell_name(keys: Sequence[str], cell: Sequence[str]) -> str:
    """The cell's values; a single number gets the name of its key."""
    return f"{keys[0]} {cell[0]}" if len(cell) == 1 and cell[0].isdecimal() else " · ".join(cell)


def summary(name: str, outcomes: Sequence[Outcome]) -> Summary:
    """Counts of one group."""
    looped = [item for item in outcomes if item.is_loop]
    others = [item for item in outcomes if not item.is_loop]
    forwards = [item.wasted_forwards for item in outcomes]
    num_units = sum(item.findings.length for item in outcomes)
    return Summary(
        name=name,
        num_texts=len(outcomes),
        loop=rate_of(outcomes, lambda item: item.is_loop),
        endless=rate_of(outcomes, lambda item: item.is_endless),
        exact_run=rate_of(outcomes, has_exact_run),
        kinds={kind: rate_of(outcomes, lambda item, kind=kind: kind in item.kinds) for kind in Kind},  # type: ignore[misc]
        presets={
            preset: rate_of(outcomes, lambda item, preset=preset: item.findings.presets[preset])  # type: ignore[misc]
            for preset in (outcomes[0].findings.presets if outcomes else ())
        },
        self_correction=rate_of(looped, lambda item: item.findings.is_self_correction),
        escaped=rate_of(looped, lambda item: item.findings.is_escaped),
        terminal=rate_of(looped, lambda item: item.findings.is_terminal),
        forced_closure=rate_of(looped, lambda item: item.findings.is_forced_closure),
        template=rate_of(outcomes, lambda item: item.findings.is_template),
        looped_right=rate_of(looped, lambda item: item.is_right),
        other_right=rate_of(others, lambda item: item.is_right),
        exact_right=rate_of([item for item in outcomes if has_exact_run(item)], lambda item: item.is_right),
        exact_other_right=rate_of([item for item in outcomes if not has_exact_run(item)], lambda item: item.is_right),
        right_before=rate_of(looped, lambda item: item.was_right_before),
        seed_interval=_seed_interval(outcomes),
        wasted=sum(item.findings.wasted for item in outcomes) / max(1, num_units),
        wasted_units=sum(item.findings.wasted for item in outcomes),
        wasted_forwards=sum(x for x in forwards if x is not None) if any(x is not None for x in forwards) else None,
        median_length=statistics.median(item.findings.length for item in outcomes) if outcomes else 0,
        secondary=_secondary(outcomes),
    )


def _seed_interval(outcomes: Sequence[Outcome]) -> tuple[float, float] | None:
    hits: dict[str | None, list[bool]] = defaultdict(list)
    for item in outcomes:
        hits[item.generation.groups.get(SEED)].append(item.is_loop)
    if len(hits) < 2:
        return None
    found = mean_over_seeds(
        [statistics.mean(of_seed) for of_seed in hits.values()], [share_variance(of_seed) for of_seed in hits.values()]
    )
    return max(0.0, found.low), min(1.0, found.high)


def same_prompts(outcomes: Sequence[Outcome]) -> SamePrompts | None:
    """Accuracies on prompts with looping and other texts; None where no prompt has both."""
    by_prompt: dict[tuple[str | None, str], list[Outcome]] = defaultdict(list)
    for item in outcomes:
        if item.generation.prompt is not None and item.is_right is not None:
            by_prompt[item.generation.groups.get("task"), item.generation.prompt].append(item)
    looped, others = [], []
    for items in by_prompt.values():
        right_looped = [bool(item.is_right) for item in items if item.is_loop]
        right_others = [bool(item.is_right) for item in items if not item.is_loop]
        if right_looped and right_others:
            looped.append(statistics.mean(right_looped))
            others.append(statistics.mean(right_others))
    return SamePrompts(len(looped), statistics.mean(looped), statistics.mean(others)) if looped else None


def rate_of(outcomes: Sequence[Outcome], is_hit: Callable[[Outcome], bool | None]) -> Rate:
    """Rate of hits among the texts for which `is_hit` is not None."""
    known = [hit for item in outcomes if (hit := is_hit(item)) is not None]
    return Rate(sum(known), len(known))


def _secondary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    columns: Mapping[str, list[float]] = defaultdict(list)
    for item in outcomes:
        for name, value in item.secondary.items():
            if value is not None:
                columns[name].append(value)
    return {name: statistics.mean(values) for name, values in columns.items()}

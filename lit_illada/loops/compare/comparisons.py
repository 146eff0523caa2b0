"""Differences between conditions on the same problems, with their side effects.

A condition that ends endless texts may cost right answers, so both are reported together.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean

from lit_illada.errors import UserError, unknown
from lit_illada.loops.compare.effects import ABSENT, SEED, Effect, corrected, rises, within_1
from lit_illada.loops.outcome import Outcome
from lit_illada.loops.records import FILE
from lit_illada.stats.intervals import Mean, Rate, mean_over_seeds
from lit_illada.stats.tests import Paired, mcnemar, paired_variance

_MOST_PAIRED = 4  # values of a key, beyond which each is compared with the first alone

Pair = tuple[str, str]
_Both = tuple[Outcome, Outcome]


@dataclass(frozen=True)
class SideEffects:
    """Changes in accuracy and length from `first` to `second` on the same problems."""

    first_right: Rate  # of the problems whose answers are judged under both conditions
    second_right: Rate
    right: Mean | None  # second_right − first_right, mean over seeds, not corrected; None: no answer is judged
    harmed: Rate  # wrong under `second`, of the texts right and not endless under `first`
    healed: Rate  # right under `second`, of the texts wrong and endless under `first`
    first_length: float  # mean over all problems, in units
    second_length: float


@dataclass(frozen=True)
class PairedEffect(Effect):
    """An effect measured on the same problems; `where` is the field whose two values are compared."""

    paired: Paired  # endless texts under both conditions
    side_effects: SideEffects


def differences(
    outcomes: Sequence[Outcome], keys: Sequence[str], pairs: Sequence[Pair] | None = None
) -> tuple[list[PairedEffect], list[str]]:
    """Compares values of a field on the same problems.

    Texts are paired by prompt and seed, with all other fields equal; of several texts of a problem the first counts.

    Args:
        outcomes: all texts.
        keys: fields by which texts are grouped.
        pairs: (first, second), two values of one field each. These are compared even if all texts of a value also
            differ in another field, such as the length, which a remark then states. None: `usual_pairs` of every key.

    Returns:
        The effects, and remarks on comparisons that are impossible or confounded with another field.
    """
    found: list[PairedEffect] = []
    remarks: list[str] = []
    left = list(pairs or ())
    fields = list(dict.fromkeys(name for item in outcomes for name in item.generation.groups if name != FILE))
    for key in keys:
        cells: dict[str, list[Outcome]] = defaultdict(list)
        for item in outcomes:
            cells[item.generation.groups.get(key, ABSENT)].append(item)
        chosen = usual_pairs(list(cells)) if pairs is None else [pair for pair in left if set(pair) <= cells.keys()]
        left = [pair for pair in left if pair not in chosen]
        for first, second in chosen:
            both, others = (cells[first], cells[second]), [name for name in fields if name != key]
            own = _own_values(both, others) if pairs is not None else {}
            texts = _together(*both, [name for name in others if name not in own])
            if texts:
                found.append(_paired(key, first, second, texts))
                remarks += [f"{first} and {second} differ in {name} too: {' and '.join(own[name])}" for name in own]
            elif pairs is not None:
                remarks.append(f"{first} and {second} are not compared: {_obstacle(both, others)}")
    for first, second in left:
        missing = [name for name in (first, second) if not any(_bears(outcomes, key, name) for key in keys)]
        remarks.append(f"{first} and {second} are not compared: there is no text of {' and '.join(missing)}")
    return corrected(found, len(pairs or ())), remarks


def usual_pairs(values: Sequence[str]) -> list[Pair]:
    """All pairs of at most four values, numbers in ascending order; of more values, each with the first."""
    if len(values) > _MOST_PAIRED:
        return [(values[0], value) for value in values[1:]]
    return list(combinations(sorted(values, key=float) if all(map(_is_number, values)) else values, 2))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _bears(outcomes: Sequence[Outcome], key: str, value: str) -> bool:
    return any(item.generation.groups.get(key, ABSENT) == value for item in outcomes)


def _own_values(both: tuple[list[Outcome], list[Outcome]], names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Fields that have one value in all texts of the first group and another in all texts of the second."""
    found = {}
    for name in names:
        first, second = ({item.generation.groups.get(name, ABSENT) for item in items} for items in both)
        if len(first) == len(second) == 1 and first != second:
            found[name] = (first.pop(), second.pop())
    return found


def _together(first: Sequence[Outcome], second: Sequence[Outcome], names: Sequence[str]) -> dict[str, list[_Both]]:
    """By seed, the pairs of texts of the same problem with equal values of these fields."""

    def by_problem(items: Sequence[Outcome]) -> dict[tuple[str | None, ...], Outcome]:
        found: dict[tuple[str | None, ...], Outcome] = {}
        for item in items:
            if item.generation.prompt is not None:
                groups = item.generation.groups
                found.setdefault((item.generation.prompt, *(groups.get(name) for name in names)), item)
        return found

    texts: dict[str, list[_Both]] = defaultdict(list)
    of_second = by_problem(second)
    for problem, item in by_problem(first).items():
        if problem in of_second:
            texts[item.generation.groups.get(SEED, "")].append((item, of_second[problem]))
    return texts


def _obstacle(both: tuple[list[Outcome], list[Outcome]], names: Sequence[str]) -> str:
    """The reason why no problem has texts in both groups."""
    first, second = ({item.generation.prompt for item in items} - {None} for items in both)
    if not first or not second:
        return "the texts of one of them name no prompt"
    if not first & second:
        return f"none of their prompts is in both ({len(first)} and {len(second)})"
    for name in names:
        values = [{item.generation.groups.get(name, ABSENT) for item in items} for items in both]
        if not values[0] & values[1]:
            return f"their {name} differs ({', '.join(sorted(values[0]))}; {', '.join(sorted(values[1]))})"
    return f"no prompt has equal {', '.join(names)} in both"


def _paired(key: str, first: str, second: str, texts: Mapping[str, Sequence[_Both]]) -> PairedEffect:
    hits = {seed: [(one.is_endless, other.is_endless) for one, other in both] for seed, both in texts.items()}
    found, by_seed = _over_seeds(hits)
    every = [pair for pairs in hits.values() for pair in pairs]
    together = mcnemar(every)
    p_value = found.p_value if len(hits) > 1 else together.p_value
    return PairedEffect(
        key, first, second, *_rates(every), found.low, found.high, p_value, by_seed, together, _side_effects(texts)
    )


def _side_effects(texts: Mapping[str, Sequence[_Both]]) -> SideEffects:
    every = [both for of_seed in texts.values() for both in of_seed]
    judged = {
        seed: [(one, other) for one, other in of_seed if one.is_right is not None and other.is_right is not None]
        for seed, of_seed in texts.items()
    }
    right = {seed: [(bool(one.is_right), bool(other.is_right)) for one, other in both] for seed, both in judged.items()}
    right = {seed: pairs for seed, pairs in right.items() if pairs}
    known = [both for of_seed in judged.values() for both in of_seed]
    harmed = [not other.is_right for one, other in known if one.is_right and not one.is_endless]
    healed = [bool(other.is_right) for one, other in known if not one.is_right and one.is_endless]
    lengths = (mean(both[side].findings.length for both in every) for side in (0, 1))
    return SideEffects(
        *_rates([pair for pairs in right.values() for pair in pairs]),
        _over_seeds(right)[0] if right else None,
        Rate(sum(harmed), len(harmed)),
        Rate(sum(healed), len(healed)),
        *lengths,
    )


def _over_seeds(hits: Mapping[str, Sequence[tuple[bool, bool]]]) -> tuple[Mean, dict[str, float]]:
    """Second minus first fraction of hits: the mean over seeds, and the difference of each seed."""
    by_seed = {seed: mean(second - first for first, second in pairs) for seed, pairs in hits.items()}
    variances = [paired_variance(mcnemar(pairs)) for pairs in hits.values()]
    found = mean_over_seeds(list(by_seed.values()), variances)
    return Mean(found.value, *within_1(found.low, found.high), found.p_value), by_seed


def _rates(pairs: Sequence[tuple[bool, bool]]) -> tuple[Rate, Rate]:
    first, second = (Rate(sum(pair[side] for pair in pairs), len(pairs)) for side in (0, 1))
    return first, second


@dataclass(frozen=True)
class Effects:
    """All comparisons of one analysis."""

    harder: list[Effect]  # from the easiest to the hardest level of difficulty
    same: list[PairedEffect]  # two conditions on the same problems
    remarks: list[str]  # impossible or confounded comparisons


def effects(outcomes: Sequence[Outcome], keys: Sequence[str], pairs: Sequence[Pair] | None = None) -> Effects:
    """Compares levels and conditions. pairs: as for `differences`."""
    same, remarks = differences(outcomes, keys, pairs)
    return Effects(rises(outcomes, keys), same, remarks)


def check_pairs(pairs: Sequence[Pair], outcomes: Sequence[Outcome], keys: Sequence[str]) -> None:
    """Raises UserError for a pair that is given twice or whose names are not two values of one field."""
    for number, pair in enumerate(pairs):
        if len(set(pair)) == 1 or set(pair) in map(set, pairs[:number]):
            raise UserError(f"--compare takes two different groups, each pair once; got {' and '.join(pair)}")
    values = {key: {item.generation.groups.get(key, ABSENT) for item in outcomes} for key in keys}
    for pair in pairs:
        if not any(set(pair) <= found for found in values.values()):
            every = set().union(*values.values())
            missing = next((name for name in pair if name not in every), None)
            if missing is not None:
                raise unknown("group to compare", missing, every)
            raise UserError(
                f"{pair[0]!r} and {pair[1]!r} are values of different fields; compare two values of one field"
            )

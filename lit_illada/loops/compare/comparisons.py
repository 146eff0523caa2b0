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
    """What `second` does to the same problems besides.

    first_right, second_right: of the problems judged under both. right: the difference of these shares, the mean over
    seeds with its 95 % interval by itself; None where none is judged. harmed: of the judged texts that were right and
    not endless under `first`, those that are wrong under `second`. healed: of those that were endless and wrong, those
    that are right. first_length, second_length: means over all problems, in units.
    """

    first_right: Rate
    second_right: Rate
    right: Mean | None
    harmed: Rate
    healed: Rate
    first_length: float
    second_length: float


@dataclass(frozen=True)
class PairedEffect(Effect):
    """On the same problems. where: the key of both values."""

    paired: Paired
    side_effects: SideEffects


def differences(
    outcomes: Sequence[Outcome], keys: Sequence[str], pairs: Sequence[Pair] | None = None
) -> tuple[list[PairedEffect], list[str]]:
    """Values of a key against each other, and remarks on what could not be compared or differs in more.

    pairs: (first, second), each of one key's values; None: as `usual_pairs` says, of every key. Only the same problems
    of the same seed compare, all else that the files tell being equal, and a problem's first text counts. What is asked
    for is compared also where a whole value differs in something more, such as its length; a remark says so.
    """
    found: list[PairedEffect] = []
    remarks: list[str] = []
    left = list(pairs or ())
    told = list(dict.fromkeys(name for item in outcomes for name in item.generation.groups if name != FILE))
    for key in keys:
        cells: dict[str, list[Outcome]] = defaultdict(list)
        for item in outcomes:
            cells[item.generation.groups.get(key, ABSENT)].append(item)
        chosen = usual_pairs(list(cells)) if pairs is None else [pair for pair in left if set(pair) <= cells.keys()]
        left = [pair for pair in left if pair not in chosen]
        for first, second in chosen:
            both, others = (cells[first], cells[second]), [name for name in told if name != key]
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
    """Each with those behind it where there are at most four, else with the first: numbers by size, names as given."""
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
    """What is one thing in all texts of the first, and another in all of the second."""
    found = {}
    for name in names:
        first, second = ({item.generation.groups.get(name, ABSENT) for item in items} for items in both)
        if len(first) == len(second) == 1 and first != second:
            found[name] = (first.pop(), second.pop())
    return found


def _together(first: Sequence[Outcome], second: Sequence[Outcome], names: Sequence[str]) -> dict[str, list[_Both]]:
    """The texts of the same problems where these groups are equal, by seed."""

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
    """Why no problem is in both."""
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
    """The mean of the seeds' differences of shares, second less first, and each seed's own."""
    by_seed = {seed: mean(second - first for first, second in pairs) for seed, pairs in hits.items()}
    variances = [paired_variance(mcnemar(pairs)) for pairs in hits.values()]
    found = mean_over_seeds(list(by_seed.values()), variances)
    return Mean(found.value, *within_1(found.low, found.high), found.p_value), by_seed


def _rates(pairs: Sequence[tuple[bool, bool]]) -> tuple[Rate, Rate]:
    first, second = (Rate(sum(pair[side] for pair in pairs), len(pairs)) for side in (0, 1))
    return first, second


@dataclass(frozen=True)
class Effects:
    """harder: from the easiest level to the hardest. same: on the same problems under two conditions. remarks: on what
    could not be compared, or differs in more than it is compared by."""

    harder: list[Effect]
    same: list[PairedEffect]
    remarks: list[str]


def effects(outcomes: Sequence[Outcome], keys: Sequence[str], pairs: Sequence[Pair] | None = None) -> Effects:
    """pairs: (first, second), all that is compared on the same problems; None: the usual ones."""
    same, remarks = differences(outcomes, keys, pairs)
    return Effects(rises(outcomes, keys), same, remarks)


def check_pairs(pairs: Sequence[Pair], outcomes: Sequence[Outcome], keys: Sequence[str]) -> None:
    """Raises UserError for a pair of no key's values, and for one that stands twice."""
    for number, pair in enumerate(pairs):
        if len(set(pair)) == 1 or set(pair) in map(set, pairs[:number]):
            raise UserError(f"compared are two groups, and each two once; got {' and '.join(pair)}")
    values = {key: {item.generation.groups.get(key, ABSENT) for item in outcomes} for key in keys}
    for pair in pairs:
        if not any(set(pair) <= found for found in values.values()):
            every = set().union(*values.values())
            stranger = next((name for name in pair if name not in every), None)
            if stranger is not None:
                raise unknown("group to compare", stranger, every)
            raise UserError(f"{pair[0]!r} and {pair[1]!r} are of different fields: two values of one field compare")

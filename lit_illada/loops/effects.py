"""What changes how often a model reasons without end: harder problems, and each condition on the same problems."""

from collections.abc import Sequence
from dataclasses import dataclass

from lit_illada.errors import UserError, unknown
from lit_illada.loops.effect import ABSENT, Effect
from lit_illada.loops.harder import rises
from lit_illada.loops.outcome import Outcome
from lit_illada.loops.same_problems import Pair, PairedEffect, differences


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

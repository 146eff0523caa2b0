"""How often do two rules choose the same?"""

from collections.abc import Mapping, Sequence
from itertools import combinations


def agreement(choices: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
    """The share of the items on which two rules choose the same, both ways round, 1 with itself."""
    table = {rule: {rule: 1.0} for rule in choices}
    for one, other in combinations(choices, 2):
        pairs = list(zip(choices[one], choices[other], strict=True))
        table[one][other] = table[other][one] = sum(a == b for a, b in pairs) / len(pairs)
    return {rule: {other: table[rule][other] for other in choices} for rule in choices}

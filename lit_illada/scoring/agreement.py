"""How often is each rule right, how sure is that, and how often do two rules choose the same?"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import sqrt

Z_95 = 1.959963984540054


def wilson(num_hits: int, num_tries: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion; (0, 1) where nothing was tried."""
    if num_tries == 0:
        return 0.0, 1.0
    p, weight = num_hits / num_tries, Z_95**2 / num_tries
    centre = (p + weight / 2) / (1 + weight)
    half = sqrt(p * (1 - p) * weight + weight**2 / 4) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def agreement(choices: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
    """The share of the items on which two rules choose the same, both ways round, 1 with itself."""
    table = {rule: {rule: 1.0} for rule in choices}
    for one, other in combinations(choices, 2):
        pairs = list(zip(choices[one], choices[other], strict=True))
        table[one][other] = table[other][one] = sum(a == b for a, b in pairs) / len(pairs)
    return {rule: {other: table[rule][other] for other in choices} for rule in choices}

"""How sure is a proportion that was counted, and how sure are many verdicts at once?"""

from collections.abc import Mapping
from math import sqrt
from typing import TypeVar

Key = TypeVar("Key")

Z_95 = 1.959963984540054


def wilson(num_hits: int, num_tries: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion; (0, 1) where nothing was tried."""
    if num_tries == 0:
        return 0.0, 1.0
    p, weight = num_hits / num_tries, Z_95**2 / num_tries
    centre = (p + weight / 2) / (1 + weight)
    half = sqrt(p * (1 - p) * weight + weight**2 / 4) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def holm(p: Mapping[Key, float], num_comparisons: int) -> dict[Key, float]:
    """Holm's step-down corrected p values; comparisons that are planned and not given count as p = 1."""
    corrected, so_far = {}, 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        so_far = max(so_far, min(1.0, (num_comparisons - rank) * p[name]))
        corrected[name] = so_far
    return corrected

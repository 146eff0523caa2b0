"""How sure is a proportion that was counted?"""

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

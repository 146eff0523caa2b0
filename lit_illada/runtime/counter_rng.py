"""Counter-based random numbers: the same on every machine and rank and after a resume.

A draw is a hash of its key and its counter (splitmix64, Steele, Lea and Flood 2014), so there is no generator state to
save, and the numbers do not change with the version of NumPy. `objective/noise.py` hashes torch tensors.

All arithmetic is on int64 and wraps around at 2⁶⁴.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


def uniform(counters: NDArray[np.int64], *key: int) -> NDArray[np.float64]:
    """One number in [0, 1) per counter, of the same shape. key: integers that name the use, such as a seed."""
    return shift_right(_hashed(counters, key), 11).astype(np.float64) * 2.0**-53


def permutation(size: int, *key: int) -> NDArray[np.int64]:
    """(size,): the numbers 0 … size − 1 in random order."""
    return np.argsort(_hashed(np.arange(size), key).view(np.uint64), kind="stable")


def mix(bits: Any) -> Any:
    """Finaliser of splitmix64, a bijection of the 64-bit integers. bits: a NumPy array or a torch tensor, int64."""
    bits = (bits ^ shift_right(bits, 30)) * _MULTIPLIER_1
    bits = (bits ^ shift_right(bits, 27)) * _MULTIPLIER_2
    return bits ^ shift_right(bits, 31)


def shift_right(bits: Any, places: int) -> Any:
    """Shift logically, as the hash's definition does. bits: as for `mix`."""
    # `>>` on int64 repeats the sign bit, which the mask removes
    return (bits >> places) & ((1 << (64 - places)) - 1)


def wrapped(value: int) -> int:
    """The signed 64-bit integer equal to `value` modulo 2⁶⁴."""
    return (value + 2**63) % 2**64 - 2**63


GOLDEN = wrapped(0x9E3779B97F4A7C15)  # 2⁶⁴ / golden ratio, odd
_MULTIPLIER_1 = wrapped(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = wrapped(0x94D049BB133111EB)


def _hashed(counters: NDArray[np.int64], key: tuple[int, ...]) -> NDArray[np.int64]:
    return mix((mix(counters.astype(np.int64) + GOLDEN) ^ _state(key)) + GOLDEN)


@lru_cache(maxsize=1024)
def _state(key: tuple[int, ...]) -> NDArray[np.int64]:
    """(1,): the hash of a key."""
    state = np.zeros(1, np.int64)
    for part in key:
        state = mix((state ^ wrapped(part)) + GOLDEN)
    return state

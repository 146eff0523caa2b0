"""Counter-based random numbers: the same on every machine and rank and after a resume.

A draw is a hash of its key and its counter (splitmix64, Steele et al. 2014), so there is no generator state to save,
and the numbers do not change with the version of NumPy.
"""

import numpy as np
from numpy.typing import NDArray

_MASK = 2**64 - 1


def uniform(counters: NDArray[np.int64], *key: int) -> NDArray[np.float64]:
    """One number in [0, 1) per counter, of the same shape. key: integers that name the use, such as a seed."""
    return (_hashed(counters, key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(size: int, *key: int) -> NDArray[np.int64]:
    """(size,): the numbers 0 … size − 1 in random order."""
    return np.argsort(_hashed(np.arange(size), key), kind="stable")


def _hashed(counters: NDArray[np.int64], key: tuple[int, ...]) -> NDArray[np.uint64]:
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _splitmix64(state ^ np.uint64(part & _MASK))
    return _splitmix64(_splitmix64(counters.astype(np.uint64)) ^ state)


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

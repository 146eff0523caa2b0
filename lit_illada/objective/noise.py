"""Where does every random number of the corruption come from? From its address, not from a generator's state.

A number is a hash of (seed, purpose, row, position), so it is the same on every device and in any order, and does not
depend on the world size, the accumulation or a resume. The hash is splitmix64: a row owns a stream, and a position is
its index there.

Shapes: B rows, T positions. All arithmetic is on int64 and wraps around at 2⁶⁴.
"""

from enum import IntEnum

import torch
from torch import Tensor


class Purpose(IntEnum):
    """What a number is used for; two purposes never share one. The values are part of the noise: never renumber."""

    MASK_RATIO = 1
    MASK = 2
    STRATUM = 3
    YARDSTICK_RATIO = 4
    YARDSTICK_MASK = 5


def uniform(seed: int, purpose: Purpose, row_ids: Tensor, positions: Tensor | None = None) -> Tensor:
    """Uniform numbers in the open interval (0, 1), float64: (B,), or (B, T) when `positions` is given.

    row_ids: (B,) int64, any value. positions: (T,) int64.
    """
    bits = random_bits(seed, purpose, row_ids)
    if positions is not None:
        bits = _mix(bits[:, None] + (positions + 1) * _GOLDEN)
    return to_unit_interval(bits)


def random_bits(seed: int, purpose: Purpose, row_ids: Tensor) -> Tensor:
    """(B,) int64: 64 well-mixed bits a row."""
    key = _mix(torch.full_like(row_ids, _wrapped(seed)) + _GOLDEN)
    key = _mix(key + _wrapped(purpose * _GOLDEN))
    return _mix(key + (row_ids + 1) * _GOLDEN)


def golden_steps(offset_bits: Tensor, steps: Tensor) -> Tensor:
    """Kronecker's sequence frac(offset + step·(√5 − 1)/2) in (0, 1), float64, exact for any step."""
    return to_unit_interval(offset_bits + steps * _GOLDEN)


def to_unit_interval(bits: Tensor) -> Tensor:
    """The upper 52 bits as the midpoint of one of 2⁵² equal cells of (0, 1): exact in float64, never 0, never 1."""
    return (_shift_right(bits, 12).to(torch.float64) + 0.5) * 2.0**-52


def _mix(bits: Tensor) -> Tensor:
    """Steele, Lea and Flood's splitmix64 finaliser, a bijection of the 64-bit integers."""
    bits = (bits ^ _shift_right(bits, 30)) * _MULTIPLIER_1
    bits = (bits ^ _shift_right(bits, 27)) * _MULTIPLIER_2
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, places: int) -> Tensor:
    # `>>` repeats the sign bit on int64; the mask makes it the logical shift that the hash is defined with.
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _wrapped(value: int) -> int:
    """The signed 64-bit integer equal to `value` modulo 2⁶⁴."""
    return (value + 2**63) % 2**64 - 2**63


_GOLDEN = _wrapped(0x9E3779B97F4A7C15)  # 2⁶⁴ / golden ratio, odd
_MULTIPLIER_1 = _wrapped(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _wrapped(0x94D049BB133111EB)

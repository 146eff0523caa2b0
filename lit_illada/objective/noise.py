"""Counter-based random numbers of the corruption.

A number is a hash of (seed, purpose, row, position), so it is equal on every device and in any order, and independent
of the world size, gradient accumulation and resumes. The hash is splitmix64 (`runtime/counter_rng.py`): each row is a
stream, each position an index into it.

Shapes: B rows, T positions. All arithmetic is on int64 and wraps around at 2⁶⁴.
"""

from enum import IntEnum

import torch
from torch import Tensor

from lit_illada.runtime.counter_rng import GOLDEN, mix, shift_right, wrapped


class Purpose(IntEnum):
    """Use of a number; part of the hash, so that no two uses share numbers. Renumbering would change all runs."""

    MASK_RATIO = 1
    MASK = 2
    STRATUM = 3
    VALIDATION_RATIO = 4
    VALIDATION_MASK = 5
    ALIGNMENT_RATIO = 6
    ALIGNMENT_BLOCK = 7
    ALIGNMENT_MASK = 8
    ALIGNMENT_CONTEXT = 9
    ATTENTION = 10


def uniform(seed: int, purpose: Purpose, row_ids: Tensor, positions: Tensor | None = None) -> Tensor:
    """Uniform numbers in the open interval (0, 1), float64: (B,), or (B, T) when `positions` is given.

    row_ids: (B,) int64, any value. positions: (T,) int64.
    """
    bits = random_bits(seed, purpose, row_ids)
    if positions is not None:
        bits = mix(bits[:, None] + (positions + 1) * GOLDEN)
    return to_unit_interval(bits)


def random_bits(seed: int, purpose: Purpose, row_ids: Tensor) -> Tensor:
    """(B,) int64: 64 random bits per row."""
    key = mix(torch.full_like(row_ids, wrapped(seed)) + GOLDEN)
    key = mix(key + wrapped(purpose * GOLDEN))
    return mix(key + (row_ids + 1) * GOLDEN)


def golden_steps(offset_bits: Tensor, steps: Tensor) -> Tensor:
    """Kronecker sequence frac(offset + step·(√5 − 1)/2) in (0, 1), float64.

    Computed in integers modulo 2⁶⁴, so it loses no precision for large steps.
    """
    return to_unit_interval(offset_bits + steps * GOLDEN)


def to_unit_interval(bits: Tensor) -> Tensor:
    """The upper 52 bits as the midpoint of one of 2⁵² equal cells of (0, 1): exact in float64, never 0, never 1."""
    return (shift_right(bits, 12).to(torch.float64) + 0.5) * 2.0**-52

"""Row shortening, which shows a model trained on full rows short sequences too.

Shapes: B rows, T tokens per row.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_illada.errors import UserError
from lit_illada.runtime.counter_rng import uniform

_HAPPENS, _WHERE = 1, 2


@dataclass(frozen=True)
class NoShortening:
    """Rows keep their full length."""

    def apply(
        self, is_start_BT: NDArray[np.bool], is_maskable_BT: NDArray[np.bool], row_ids: NDArray[np.int64], seed: int
    ) -> None:
        """Changes the segment starts and the maskable tokens in place; draws are keyed by (seed, row id)."""


@dataclass(frozen=True)
class SplitRow:
    """Split some rows into two segments at a uniform random point (iLLaDA, arXiv 2606.25331: 0.3)."""

    probability: float = 0.3
    """Probability that a row is split."""

    def __post_init__(self) -> None:
        _require_probability("split", self.probability)

    def apply(
        self, is_start_BT: NDArray[np.bool], is_maskable_BT: NDArray[np.bool], row_ids: NDArray[np.int64], seed: int
    ) -> None:
        rows = np.flatnonzero(uniform(row_ids, seed, _HAPPENS) < self.probability)
        # from 1 on, as a segment always starts at 0
        cuts = 1 + (uniform(row_ids[rows], seed, _WHERE) * (is_start_BT.shape[1] - 1)).astype(np.int64)
        is_start_BT[rows, cuts] = True


@dataclass(frozen=True)
class TruncateRow:
    """Truncate some rows to a length drawn from U[1, T] (LLaDA, arXiv 2502.09992: 0.01)."""

    probability: float = 0.01
    """Probability that a row is truncated."""

    def __post_init__(self) -> None:
        _require_probability("truncate", self.probability)

    def apply(
        self, is_start_BT: NDArray[np.bool], is_maskable_BT: NDArray[np.bool], row_ids: NDArray[np.int64], seed: int
    ) -> None:
        row_length = is_start_BT.shape[1]
        lengths = np.full(len(row_ids), row_length)
        rows = np.flatnonzero(uniform(row_ids, seed, _HAPPENS) < self.probability)
        lengths[rows] = 1 + (uniform(row_ids[rows], seed, _WHERE) * row_length).astype(np.int64)
        # A batch is rectangular, so the tail stays in the row: as a separate segment, which the rest does not attend
        # to, and without loss it has no effect.
        cut = np.flatnonzero(lengths < row_length)
        is_start_BT[cut, lengths[cut]] = True
        is_maskable_BT &= np.arange(row_length) < lengths[:, None]


SHORTENINGS: dict[str, type] = {"none": NoShortening, "split": SplitRow, "truncate": TruncateRow}


def _require_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"data.shortening.probability of {name!r} is {value}; it must lie between 0 and 1")

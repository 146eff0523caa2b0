"""Batches of rows, and the division of rows among ranks.

Shapes: B rows, T tokens per row.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, DistributedSampler, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from lit_illada.batch import Layout, TokenBatch
from lit_illada.data.packing import PackedStream
from lit_illada.data.shortening import NoShortening, SplitRow, TruncateRow
from lit_illada.errors import UserError


class RowArrays(NamedTuple):
    """Rows as NumPy arrays, (B, T) each."""

    tokens: NDArray[np.integer]
    is_start: NDArray[np.bool]  # where a segment starts, among others at the first token of every row
    is_maskable: NDArray[np.bool]
    is_response: NDArray[np.bool] | None = None  # None for plain text
    document_ids: NDArray[np.int64] | None = None  # None for training rows

    def row(self, index: int) -> tuple[NDArray[Any], ...]:
        """One row of each array that is not None."""
        return tuple(part[index] for part in self if part is not None)


class RowBatches(TorchDataset[TokenBatch], ABC):
    """A map-style data set whose index is the list of row ids of a micro-batch."""

    @property
    @abstractmethod
    def rows_per_epoch(self) -> int:
        """Rows after which all data were used once."""

    @abstractmethod
    def arrays(self, row_ids: NDArray[np.int64]) -> RowArrays:
        """The rows with these numbers in the endless stream; a pure function of them."""

    def __getitem__(self, row_ids: Sequence[int]) -> TokenBatch:
        try:
            return self._batch(np.asarray(row_ids, np.int64))
        except UserError as error:
            if get_worker_info() is None:
                raise
            # RowLoader raises it: torch would wrap it in the traceback of the worker process
            return error  # type: ignore[return-value]

    def _batch(self, row_ids: NDArray[np.int64]) -> TokenBatch:
        rows = self.arrays(row_ids)
        return TokenBatch(
            input_ids=torch.from_numpy(rows.tokens.astype(np.int64)),
            is_maskable=torch.from_numpy(rows.is_maskable),
            row_ids=torch.from_numpy(row_ids),
            layout=_layout(rows.is_start),
            is_response=None if rows.is_response is None else torch.from_numpy(rows.is_response),
            document_ids=None if rows.document_ids is None else torch.from_numpy(rows.document_ids),
        )


def _layout(is_start_BT: NDArray[np.bool]) -> Layout:
    """Layout of the segments that begin at the marked tokens; every row begins one."""
    starts = np.flatnonzero(is_start_BT)
    borders = np.empty(len(starts) + 1, np.int64)
    borders[:-1], borders[-1] = starts, is_start_BT.size
    lengths = borders[1:] - starts
    position_ids = np.arange(is_start_BT.size) - np.repeat(starts, lengths)
    return Layout(
        torch.from_numpy(position_ids.reshape(is_start_BT.shape)),
        torch.from_numpy(borders.astype(np.int32)),
        max_seqlen=int(lengths.max()),
        num_pairs=int(lengths @ lengths),
    )


@dataclass(frozen=True)
class PackedRows(RowBatches):
    """Batches of packed documents."""

    stream: PackedStream
    shortening: NoShortening | SplitRow | TruncateRow
    isolate_documents: bool  # whether every document is a segment; otherwise the row is
    seed: int  # of the shortening
    has_document_ids: bool = False  # whether batches carry document_ids

    @property
    def rows_per_epoch(self) -> int:
        return self.stream.rows_per_epoch

    def arrays(self, row_ids: NDArray[np.int64]) -> RowArrays:
        tokens_BT, is_start_BT = self.stream.rows(row_ids)
        if not self.isolate_documents:
            is_start_BT[:, 1:] = False
        is_maskable_BT = np.ones(tokens_BT.shape, np.bool)
        self.shortening.apply(is_start_BT, is_maskable_BT, row_ids, self.seed)
        document_ids_BT = self.stream.document_ids(row_ids) if self.has_document_ids else None
        return RowArrays(tokens_BT, is_start_BT, is_maskable_BT, document_ids=document_ids_BT)


class RowLoader(DataLoader[TokenBatch]):
    """A DataLoader that raises the UserError of a worker process without torch's traceback."""

    def __iter__(self) -> Iterator[TokenBatch]:  # type: ignore[override]
        batches: Iterator[TokenBatch] = super().__iter__()  # also where it is not used: it draws a seed from torch
        if not self.num_workers and not self.pin_memory:
            # without the profiler events of torch's iterator, a sixth of the time of a small batch
            batches = map(self.dataset.__getitem__, self.sampler)
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class MicroBatches(DistributedSampler[list[int]]):
    """The row ids of one rank's micro-batches: positions first … last − 1, assigned to the ranks in turn.

    The rows of an optimizer step are therefore the same for any number of ranks and any accumulation. skipped: ranges
    (start, stop) of row numbers that the stream leaves out; a position counts only the rows that are used.
    A DistributedSampler in name only: Lightning would replace any other sampler.
    """

    def __init__(
        self,
        *,
        first: int,
        last: int,
        micro_batch_rows: int,
        rank: int,
        world_size: int,
        skipped: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.first = first
        self.last = last
        self.micro_batch_rows = micro_batch_rows
        self.rank = rank
        self.num_replicas = world_size
        self._skipped = skipped

    def __iter__(self) -> Iterator[list[int]]:
        stride = self.micro_batch_rows * self.num_replicas
        for start in range(self.first, self.last, stride):
            positions = range(start + self.rank, min(start + stride, self.last), self.num_replicas)
            yield [row_at(position, self._skipped) for position in positions] if self._skipped else list(positions)

    def __len__(self) -> int:
        """Micro-batches from position 0, not from `first`: Lightning counts restored batches as part of the epoch."""
        return -(-self.last // (self.micro_batch_rows * self.num_replicas))

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the row ids determine the order of every epoch."""


def row_at(position: int, skipped: Sequence[tuple[int, int]]) -> int:
    """The row number at a position of the stream without the skipped ranges (start, stop), which may overlap."""
    row, passed = position, 0
    for start, stop in sorted(skipped):
        if row < max(start, passed):
            break
        row += max(0, stop - max(start, passed))
        passed = max(passed, stop)
    return row

"""Packed rows of a prepared data set, as an endless stream with random access.

Row g is a pure function of (seed, g), so the position of a run is one number, any rank or worker can read any row, and
resuming costs nothing.

An epoch takes the shards in an order drawn from (seed, epoch). The documents of each shard, in an order drawn from
(seed, epoch, shard), are concatenated and cut into rows of T tokens (the remainder, a different one every epoch, is
dropped), and the rows are shuffled within the shard. The sequence of all rows is divided into `num_streams` equal
streams, and row g comes from stream g mod num_streams: adjacent rows come from different shards, while a reader has
only num_streams of them in memory.

Where bad shards are skipped, their rows are replaced by rows of the next good shard in the manifest's order. This is
the same for every rank and after a resume, and no other row changes.

Shapes: B rows, T tokens per row, R rows of a shard, D documents of a shard.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lit_illada.data.dataset.reading import BadShardError, Dataset, Shard
from lit_illada.errors import UserError
from lit_illada.runtime.counter_rng import permutation

log = logging.getLogger(__name__)
_SHARDS, _DOCUMENTS, _ROWS = 1, 2, 3  # keys of the random draws


class PackedStream:
    """The rows of a split, in the order of a seed.

    rows_per_epoch: rows after which every document was used once.
    is_bad: (shards,) uint8, 1 for skipped shards, in memory shared with the loader processes; None where a bad shard is
        an error.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        row_length: int,
        num_streams: int,
        seed: int,
        skips_bad: bool = False,
    ) -> None:
        """skips_bad: whether to skip bad shards. Raises UserError when no shard of the split fills a row."""
        self._dataset = dataset
        self._shards = dataset.manifest.split(split).shards
        self._order = RowOrder([shard.tokens // row_length for shard in self._shards], num_streams, seed)
        self.rows_per_epoch = self._order.rows_per_epoch
        self.is_bad = torch.zeros(len(self._shards), dtype=torch.uint8).share_memory_() if skips_bad else None
        self._row_length = row_length
        self._seed = seed
        self._loaded: OrderedDict[tuple[int, int], PackedShard] = OrderedDict()
        self._max_loaded = num_streams + 1  # one more, because streams do not cross shard borders simultaneously
        if not self.rows_per_epoch:
            tokens = dataset.manifest.split(split).tokens
            raise UserError(
                f"the {split} split at {dataset.location} has {tokens} tokens in {len(self._shards)} shards, none "
                f"of which fills a row of data.row_length={row_length}: lower it, or prepare more text (a text file is "
                "one document unless data.source.document_separator is set)"
            )

    def rows(self, row_ids: NDArray[np.int64]) -> tuple[NDArray[np.unsignedinteger], NDArray[np.bool]]:
        """(B, T) token ids, and (B, T) whether a document or the continuation of one starts there."""
        tokens_BT = np.empty((len(row_ids), self._row_length), self._dataset.manifest.dtype)
        is_start_BT = np.empty((len(row_ids), self._row_length), np.bool)
        for b, (packed, row) in enumerate(self._locate(row_ids)):
            tokens_BT[b] = packed.tokens[row]
            is_start_BT[b] = packed.is_start[row]
        return tokens_BT, is_start_BT

    def document_ids(self, row_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B, T): the index of each token's document in the split, in the manifest's order."""
        return np.stack([packed.document_ids(row) for packed, row in self._locate(row_ids)])

    def _locate(self, row_ids: NDArray[np.int64]) -> Iterator[tuple["PackedShard", int]]:
        """The packed shard of each row, and the row's index in it."""
        for epoch, shard, row in zip(*(part.tolist() for part in self._order.locate(row_ids)), strict=True):
            packed = self._packed(epoch, shard)
            yield packed, row % len(packed.tokens)  # a shard that replaces a bad one may have fewer rows

    def _packed(self, epoch: int, shard: int) -> "PackedShard":
        key = epoch, shard
        if self.is_bad is None and key in self._loaded:  # the path of nearly all rows
            self._loaded.move_to_end(key)
            return self._loaded[key]
        shard = self._good(shard)
        while True:
            try:
                return self._read(epoch, shard)
            except BadShardError as error:
                if self.is_bad is None:
                    raise
                self.is_bad[shard] = 1
                log.warning("skipped: %s", error)
                shard = self._good(shard)

    def _good(self, shard: int) -> int:
        """The shard, or the next one with rows that is not known to be bad."""
        if self.is_bad is None or not self.is_bad[shard]:
            return shard
        for other in (*range(shard + 1, len(self._shards)), *range(shard)):
            if not self.is_bad[other] and self._shards[other].tokens >= self._row_length:
                return other
        raise UserError(f"every training shard at {self._dataset.location} is bad: prepare or copy the data set again")

    def _read(self, epoch: int, shard: int) -> "PackedShard":
        key = epoch, shard
        if key not in self._loaded:
            while len(self._loaded) >= self._max_loaded:
                self._loaded.popitem(last=False)
            loaded = self._dataset.load(self._shards[shard])
            first_document = sum(record.documents for record in self._shards[:shard])
            self._loaded[key] = pack(loaded, self._row_length, self._seed, epoch, shard, first_document)
        self._loaded.move_to_end(key)
        return self._loaded[key]


class RowOrder:
    """The location of row g: epoch, shard and row in the shard."""

    def __init__(self, rows_per_shard: list[int], num_streams: int, seed: int) -> None:
        self._rows_per_shard = np.array(rows_per_shard, np.int64)
        num_rows = int(self._rows_per_shard.sum())
        self._num_streams = max(1, min(num_streams, num_rows))
        self._stream_rows = num_rows // self._num_streams
        self._seed = seed
        self._epochs: OrderedDict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = OrderedDict()
        self.rows_per_epoch = self._num_streams * self._stream_rows

    def locate(self, row_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(epoch, shard, row of the shard) of each row id, (B,) each."""
        epochs, indices = np.divmod(row_ids, self.rows_per_epoch)
        steps, streams = np.divmod(indices, self._num_streams)
        indices = streams * self._stream_rows + steps
        shards, rows = np.empty_like(indices), np.empty_like(indices)
        for epoch in set(epochs.tolist()):
            is_epoch = epochs == epoch
            order, firsts = self._epoch(epoch)
            positions = np.searchsorted(firsts, indices[is_epoch], side="right") - 1
            shards[is_epoch] = order[positions]
            rows[is_epoch] = indices[is_epoch] - firsts[positions]
        return epochs, shards, rows

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The order of the shards in an epoch, and the index of the first row of each."""
        if epoch not in self._epochs:
            order = permutation(len(self._rows_per_shard), self._seed, epoch, _SHARDS)
            order = order[self._rows_per_shard[order] > 0]
            sizes = self._rows_per_shard[order]
            self._epochs[epoch] = order, np.cumsum(sizes) - sizes
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]


@dataclass(frozen=True)
class PackedShard:
    """The rows of a shard in the order of an epoch."""

    tokens: NDArray[np.unsignedinteger]  # (R, T)
    is_start: NDArray[np.bool]  # (R, T): where a document or a row starts
    first_document: int  # index in the split of the shard's first document
    row_starts: NDArray[np.int64]  # (R,): position of each row in the concatenated documents
    ends: NDArray[np.int64]  # (D,): end of each document in the concatenation
    order: NDArray[np.int64]  # (D,): index in the shard of each concatenated document

    def document_ids(self, row: int) -> NDArray[np.int64]:
        """(T,): the index of each token's document in the split."""
        positions_T = self.row_starts[row] + np.arange(self.tokens.shape[1])
        return self.first_document + self.order[np.searchsorted(self.ends, positions_T, side="right")]


def pack(shard: Shard, row_length: int, seed: int, epoch: int, index: int, first_document: int = 0) -> PackedShard:
    """The documents in the order of (seed, epoch, index), concatenated and cut into shuffled rows.

    index: of the shard in the split. first_document: index in the split of the shard's first document.
    """
    order = permutation(len(shard.lengths), seed, epoch, index, _DOCUMENTS)
    ends = np.cumsum(shard.lengths)
    spans = zip((ends - shard.lengths)[order].tolist(), ends[order].tolist(), strict=True)
    tokens = np.concatenate([shard.tokens[start:end] for start, end in spans])

    num_rows = len(tokens) // row_length
    size = num_rows * row_length
    lengths = shard.lengths[order]
    starts = np.cumsum(lengths) - lengths
    is_start = np.zeros(size, np.bool)
    is_start[starts[starts < size]] = True
    is_start_RT = is_start.reshape(num_rows, row_length)
    is_start_RT[:, 0] = True

    # shuffled, since consecutive rows share a document
    rows = permutation(num_rows, seed, epoch, index, _ROWS)
    return PackedShard(
        tokens[:size].reshape(num_rows, row_length)[rows],
        is_start_RT[rows],
        first_document,
        row_starts=rows * row_length,
        ends=np.cumsum(lengths),
        order=order,
    )

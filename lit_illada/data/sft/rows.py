"""Rows of fine-tuning examples: packed windows (iLLaDA), or one example per row, padded with EOS (LLaDA).

Row g of the endless stream is a pure function of (seed, g): epoch g // rows_per_epoch uses every example once, in an
order drawn from (seed, epoch). All examples are in memory, unlike the documents of pretraining.

Shapes: B rows, T tokens per row, N tokens of all examples, D examples.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lit_illada.data.sft.config import Packed, Padded, PadTo
from lit_illada.data.stream import RowArrays, RowBatches
from lit_illada.runtime.counter_rng import permutation, uniform

_EXAMPLES, _HAS_PREFIX, _PREFIX_LENGTH = 1, 2, 3  # keys of the random draws


@dataclass(frozen=True)
class EncodedExamples:
    """Tokenised examples, concatenated."""

    tokens: NDArray[np.int64]  # (N,)
    is_response: NDArray[np.bool]  # (N,)
    lengths: NDArray[np.int64]  # (D,), sums to N

    @classmethod
    def of(cls, pairs: Iterable[tuple[list[int], list[int]]]) -> "EncodedExamples":
        """From (prompt ids, response ids) pairs."""
        pairs = list(pairs)
        parts = [part for pair in pairs for part in pair]
        sizes = np.array([len(part) for part in parts], np.int64)
        return cls(
            tokens=np.fromiter((token for part in parts for token in part), np.int64, sizes.sum()),
            is_response=np.repeat(np.arange(len(parts)) % 2 == 1, sizes),
            lengths=sizes.reshape(-1, 2).sum(1),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def starts(self) -> NDArray[np.int64]:
        """(D,): offset of each example in `tokens`."""
        return np.cumsum(self.lengths) - self.lengths

    def digest(self) -> str:
        """sha256 of the content, hexadecimal."""
        parts = [self.tokens, self.is_response, self.lengths]
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


class ExampleStream(Protocol):
    """An endless stream of numbered rows of examples."""

    rows_per_epoch: int  # rows after which every example was used once

    def rows(self, row_ids: NDArray[np.int64]) -> RowArrays:
        """The rows with these numbers; a pure function of them."""
        ...


def build_stream(
    config: Packed | Padded,
    examples: EncodedExamples,
    *,
    row_length: int,
    batch_rows: int,
    eos_token_id: int,
    seed: int,
) -> ExampleStream:
    """The stream that `config` describes.

    batch_rows: rows per optimizer step, over all ranks: padded rows are as long as the longest of a step.
    """
    match config:
        case Packed():
            return PackedExamples(config, examples, row_length, eos_token_id, seed)
        case Padded():
            return PaddedExamples(config, examples, row_length, batch_rows, eos_token_id, seed)


class PackedExamples:
    """The examples of an epoch, concatenated and cut into windows; the last one is padded with EOS without loss."""

    def __init__(
        self, config: Packed, examples: EncodedExamples, row_length: int, eos_token_id: int, seed: int
    ) -> None:
        self._config = config
        self._examples = examples
        self._row_length = row_length
        self._eos_token_id = eos_token_id
        self._seed = seed
        self._epochs: OrderedDict[int, RowArrays] = OrderedDict()
        self.rows_per_epoch = -(-len(examples.tokens) // row_length)

    def rows(self, row_ids: NDArray[np.int64]) -> RowArrays:
        epochs, indices = np.divmod(row_ids, self.rows_per_epoch)
        chosen = [self._epoch(epoch).row(index) for epoch, index in zip(epochs.tolist(), indices.tolist(), strict=True)]
        rows = RowArrays(*(np.stack(parts) for parts in zip(*chosen, strict=True)))
        self._config.shortening.apply(rows.is_start, rows.is_maskable, row_ids, self._seed)
        return rows

    def _epoch(self, epoch: int) -> RowArrays:
        """All rows of an epoch; the last two epochs are cached, since a batch may cross from one to the next."""
        if epoch not in self._epochs:
            order = permutation(len(self._examples), self._seed, epoch, _EXAMPLES)
            self._epochs[epoch] = self._cut(order)
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _cut(self, order: NDArray[np.int64]) -> RowArrays:
        examples, shape = self._examples, (self.rows_per_epoch, self._row_length)
        lengths = examples.lengths[order]
        ends = np.cumsum(lengths)
        num_tokens, size = int(ends[-1]), shape[0] * shape[1]
        # index in `examples.tokens` of each token of the concatenated, reordered examples
        source = np.repeat(examples.starts[order] - (ends - lengths), lengths) + np.arange(num_tokens)

        tokens = np.full(size, self._eos_token_id, np.int64)
        tokens[:num_tokens] = examples.tokens[source]
        is_maskable = np.zeros(size, np.bool)
        is_maskable[:num_tokens] = self._config.is_prompt_maskable or examples.is_response[source]
        is_response = np.zeros(size, np.bool)
        is_response[:num_tokens] = examples.is_response[source]
        is_start = np.zeros(size, np.bool)
        is_start[:: self._row_length] = True
        if self._config.isolate_examples:
            is_start[ends - lengths] = True
        if num_tokens < size:
            is_start[num_tokens] = True
        return RowArrays(
            tokens.reshape(shape), is_start.reshape(shape), is_maskable.reshape(shape), is_response.reshape(shape)
        )


class PaddedExamples:
    """One example per row, from the row's first token on, followed by EOS."""

    def __init__(
        self,
        config: Padded,
        examples: EncodedExamples,
        row_length: int,
        batch_rows: int,
        eos_token_id: int,
        seed: int,
    ) -> None:
        self._config = config
        self._examples = examples
        self._starts = examples.starts
        self._row_length = row_length
        self._batch_rows = batch_rows
        self._eos_token_id = eos_token_id
        self._seed = seed
        self._orders: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self.rows_per_epoch = len(examples)

    def rows(self, row_ids: NDArray[np.int64]) -> RowArrays:
        chosen = self.examples_of(row_ids)
        lengths = self._examples.lengths[chosen]
        shape = (len(row_ids), self._width(row_ids))
        tokens_BT = np.full(shape, self._eos_token_id, np.int64)
        is_maskable_BT = np.full(shape, self._config.is_padding_maskable, np.bool)
        is_response_BT = np.zeros(shape, np.bool)
        is_start_BT = np.zeros(shape, np.bool)
        is_start_BT[:, 0] = True
        for b, (start, length) in enumerate(zip(self._starts[chosen].tolist(), lengths.tolist(), strict=True)):
            source = slice(start, start + length)
            tokens_BT[b, :length] = self._examples.tokens[source]
            is_maskable_BT[b, :length] = self._config.is_prompt_maskable or self._examples.is_response[source]
            is_response_BT[b, :length] = self._examples.is_response[source]
            if length < shape[1] and not self._config.is_padding_maskable:
                is_start_BT[b, length] = True  # padding without loss is a separate segment, so no example attends to it
        self._reveal_prefixes(is_maskable_BT, is_response_BT, row_ids)
        self._config.shortening.apply(is_start_BT, is_maskable_BT, row_ids, self._seed)
        return RowArrays(tokens_BT, is_start_BT, is_maskable_BT, is_response_BT)

    def _reveal_prefixes(
        self, is_maskable_BT: NDArray[np.bool], is_response_BT: NDArray[np.bool], row_ids: NDArray[np.int64]
    ) -> None:
        """In a fraction of the rows, tokens before a random position of the response are not masked."""
        rows = np.flatnonzero(uniform(row_ids, self._seed, _HAS_PREFIX) < self._config.visible_prefix)
        fractions = uniform(row_ids[rows], self._seed, _PREFIX_LENGTH)
        for row, fraction in zip(rows.tolist(), fractions.tolist(), strict=True):
            positions = np.flatnonzero(is_response_BT[row])
            is_maskable_BT[row, : positions[int(fraction * len(positions))]] = False

    def _width(self, row_ids: NDArray[np.int64]) -> int:
        """Tokens per row: of the whole step, since a micro-batch's longest example depends on the number of ranks."""
        if self._config.pad_to is PadTo.ROW:
            return self._row_length
        steps = np.unique(row_ids // self._batch_rows)
        step_rows = (steps[:, None] * self._batch_rows + np.arange(self._batch_rows)).reshape(-1)
        return int(self._examples.lengths[self.examples_of(step_rows)].max())

    def examples_of(self, row_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B,): the index of each row's example."""
        epochs, indices = np.divmod(row_ids, self.rows_per_epoch)
        chosen = np.empty_like(indices)
        for epoch in np.unique(epochs).tolist():
            is_epoch = epochs == epoch
            chosen[is_epoch] = self._order(epoch)[indices[is_epoch]]
        return chosen

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            self._orders[epoch] = permutation(len(self._examples), self._seed, epoch, _EXAMPLES)
            if len(self._orders) > 2:
                self._orders.popitem(last=False)
        return self._orders[epoch]


class ExampleRows(RowBatches):
    """Batches of a stream of examples.

    conversations: (D,) int64, the conversation of each example, which batches carry as `document_ids`; None: they carry
    none. Requires a stream of one example per row.
    """

    def __init__(self, stream: ExampleStream, conversations: NDArray[np.int64] | None = None) -> None:
        assert conversations is None or isinstance(stream, PaddedExamples)
        self.stream = stream
        self._conversations = conversations

    @property
    def rows_per_epoch(self) -> int:
        return self.stream.rows_per_epoch

    def arrays(self, row_ids: NDArray[np.int64]) -> RowArrays:
        rows = self.stream.rows(row_ids)
        if self._conversations is None:
            return rows
        assert isinstance(self.stream, PaddedExamples)
        ids_B = self._conversations[self.stream.examples_of(row_ids)]
        return rows._replace(document_ids=np.repeat(ids_B[:, None], rows.tokens.shape[1], axis=1))

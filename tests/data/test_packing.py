"""Shapes: T tokens per row."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.data.dataset.reading import Dataset, Shard, open_dataset
from lit_illada.data.packing import PackedStream, RowOrder, pack
from lit_illada.errors import UserError
from lit_illada.runtime.counter_rng import permutation


def make_stream(dataset: Dataset, *, row_length: int = 32, num_streams: int = 4, seed: int = 3) -> PackedStream:
    return PackedStream(dataset, "train", row_length=row_length, num_streams=num_streams, seed=seed)


def reference_order(rows_per_shard: list[int], num_streams: int, seed: int, epoch: int) -> list[tuple[int, int]]:
    """(shard, row) in the reading order of an epoch, as a slow reference."""
    listed = []
    for shard in permutation(len(rows_per_shard), seed, epoch, 1).tolist():
        listed += [(shard, row) for row in range(rows_per_shard[shard])]
    num_streams = min(num_streams, len(listed))
    length = len(listed) // num_streams
    streams = [listed[s * length : (s + 1) * length] for s in range(num_streams)]
    return [streams[s][step] for step in range(length) for s in range(num_streams)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 10), st.integers(0, 99), st.data())
def test_row_order_matches_reference(rows_per_shard, num_streams, seed, data):
    if not sum(rows_per_shard):
        return
    order = RowOrder(rows_per_shard, num_streams, seed)
    expected = [
        (epoch, *row) for epoch in range(3) for row in reference_order(rows_per_shard, num_streams, seed, epoch)
    ]
    assert order.rows_per_epoch == len(expected) // 3
    # any row, in any sequence
    row_ids = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=20))
    locations = zip(*(part.tolist() for part in order.locate(np.array(row_ids))), strict=True)
    assert list(locations) == [expected[g] for g in row_ids]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(2, 16), st.integers(0, 5))
def test_packed_shard_is_concatenated_documents_cut_into_rows(lengths, row_length, epoch):
    documents = [[100 * (d + 1) + i for i in range(length)] for d, length in enumerate(lengths)]
    shard = Shard(np.array(list(chain(*documents)), np.uint32), np.array(lengths))
    packed = pack(shard, row_length, 7, epoch, 1)

    line = list(chain(*(documents[d] for d in permutation(len(lengths), 7, epoch, 1, 2))))
    rows = [line[i : i + row_length] for i in range(0, len(line) - row_length + 1, row_length)]
    expected = [rows[r] for r in permutation(len(rows), 7, epoch, 1, 3)]
    assert packed.tokens.tolist() == expected
    firsts = {document[0] for document in documents}
    is_start = [[i == 0 or token in firsts for i, token in enumerate(row)] for row in expected]
    assert packed.is_start.tolist() == is_start
    ids = [packed.document_ids(row).tolist() for row in range(len(expected))]
    assert ids == [[token // 100 - 1 for token in row] for row in expected]


def test_epoch_contains_every_token_but_remainders_in_a_new_order(prepared):
    dataset = open_dataset(prepared.dir)
    stream = make_stream(dataset, num_streams=1)
    everything = sum(
        (Counter(dataset.load(shard).tokens.tolist()) for shard in dataset.manifest.train.shards), Counter()
    )
    tails = sum(shard.tokens % 32 for shard in dataset.manifest.train.shards)
    epochs = []
    for epoch in range(2):
        first = epoch * stream.rows_per_epoch
        tokens, _ = stream.rows(np.arange(first, first + stream.rows_per_epoch))
        missing = everything - Counter(tokens.ravel().tolist())
        assert missing.total() == tails
        assert not Counter(tokens.ravel().tolist()) - everything
        epochs.append(tokens.tolist())
    assert epochs[0] != epochs[1]


def test_streams_do_not_repeat_rows_within_an_epoch(prepared):
    stream = make_stream(open_dataset(prepared.dir), num_streams=3)
    places = stream._order.locate(np.arange(2 * stream.rows_per_epoch))
    assert len(set(zip(*(part.tolist() for part in places), strict=True))) == 2 * stream.rows_per_epoch


def test_row_is_independent_of_reader_and_reading_order(prepared):
    dataset = open_dataset(prepared.dir)
    stream = make_stream(dataset)
    num_rows = 2 * stream.rows_per_epoch + 5
    tokens, is_start = stream.rows(np.arange(num_rows))
    for g in np.random.default_rng(0).integers(0, num_rows, 30):
        again = make_stream(dataset).rows(np.array([g]))
        np.testing.assert_array_equal(again[0][0], tokens[g])
        np.testing.assert_array_equal(again[1][0], is_start[g])
    assert not np.array_equal(make_stream(dataset, seed=4).rows(np.arange(num_rows))[0], tokens)


def test_sequential_reader_loads_each_shard_once_per_epoch_and_caches_few(prepared, monkeypatch):
    dataset = open_dataset(prepared.dir)
    loaded: list[str] = []
    plain = Dataset.load
    monkeypatch.setattr(Dataset, "load", lambda self, record: loaded.append(record.file) or plain(self, record))
    stream = make_stream(dataset, num_streams=2)
    for g in range(stream.rows_per_epoch):
        stream.rows(np.array([g]))
        assert len(stream._loaded) <= 3
    # a shard across the border of two streams is read twice
    assert len(loaded) <= len(dataset.manifest.train.shards) + 1


def test_ranks_read_disjoint_shards_with_one_stream_per_rank(prepared):
    dataset = open_dataset(prepared.dir)
    order = make_stream(dataset, num_streams=2)._order
    rows = np.arange(order.rows_per_epoch)
    shards = [set(order.locate(rows[rank::2])[1].tolist()) for rank in range(2)]
    assert len(shards[0] & shards[1]) <= 1


def test_more_streams_than_rows_give_every_row(prepared):
    stream = make_stream(open_dataset(prepared.dir), row_length=600, num_streams=1000)
    tokens, _ = stream.rows(np.arange(2 * stream.rows_per_epoch))
    assert tokens.shape == (2 * stream.rows_per_epoch, 600)


def test_split_without_rows_is_rejected(prepared):
    with pytest.raises(UserError, match=r"none of which fills a row of data\.row_length=100000"):
        make_stream(open_dataset(prepared.dir), row_length=100_000)


def test_document_ids_count_across_shards_of_the_split(prepared):
    dataset = open_dataset(prepared.dir)
    stream = make_stream(dataset)
    records = dataset.manifest.train.shards
    assert len(records) > 2
    documents = []
    for record in records:
        shard = dataset.load(record)
        documents += np.split(shard.tokens, np.cumsum(shard.lengths)[:-1])
    row_ids = np.arange(stream.rows_per_epoch)
    tokens, _ = stream.rows(row_ids)
    for row, ids in zip(tokens, stream.document_ids(row_ids), strict=True):
        for document in np.unique(ids):
            part = row[ids == document].tobytes()
            assert part in documents[document].tobytes()

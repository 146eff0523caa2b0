"""Data module of pretraining: packed rows of a prepared data set."""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from lit_illada.data.config import DataConfig, OnBadShard, PreparedSource
from lit_illada.data.dataset.manifest import TRAIN, VALIDATION, Manifest, is_url
from lit_illada.data.dataset.reading import BadShardError, Dataset, open_dataset
from lit_illada.data.packing import PackedStream
from lit_illada.data.prepare.prepare import prepare
from lit_illada.data.row_datamodule import VALIDATION_SEED, RowDataModule
from lit_illada.data.shortening import NoShortening, SplitRow, TruncateRow
from lit_illada.data.stream import PackedRows
from lit_illada.data.tokenizer import Tokenizer

# Not configurable, as it determines which validation rows come first: arms are compared on the same rows.
_VALIDATION_STREAMS = 8
# Training tokens counted at the start of a run; more would hardly change the cross-entropy.
_COUNTED_TOKENS = 2**23


class PackedDataModule(RowDataModule):
    """Packed rows of a prepared data set, which is prepared first if it is missing and has a source."""

    config: DataConfig

    def prepare_data(self) -> None:
        """Called on one process per node. Raises UserError when `dir` has a data set with other settings."""
        if not isinstance(self.config.source, PreparedSource) and not is_url(self.config.dir):
            prepare(self.config)

    @cached_property
    def dataset(self) -> Dataset:
        """The prepared data set. Raises UserError if it is missing."""
        return open_dataset(self.config.dir, self.config.cache_dir, self.config.fetch_attempts)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.dataset.tokenizer()

    @property
    def manifest(self) -> Manifest:
        """The manifest of the data set."""
        return self.dataset.manifest

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def location(self) -> str:
        return f"data.dir={self.config.dir}"

    @property
    def row_settings(self) -> dict[str, str]:
        return {"data.row_length": str(self.config.row_length), "data.num_streams": str(self.config.num_streams)}

    @cached_property
    def train_rows(self) -> PackedRows:
        return self._rows(TRAIN, self.config.shortening, self.config.num_streams, self.seed)

    @cached_property
    def val_rows(self) -> PackedRows:
        return self._rows(VALIDATION, NoShortening(), _VALIDATION_STREAMS, VALIDATION_SEED)

    def training_counts(self) -> NDArray[np.int64]:
        """(V,): token counts of evenly spaced training shards with about 8 million tokens, or of all. Bad shards are
        ignored if the run skips them."""
        counts = np.zeros(self.manifest.vocab_size, np.int64)
        records = self.manifest.train.shards
        for record in records[:: max(1, -(-self.manifest.train.tokens // _COUNTED_TOKENS))]:
            try:
                tokens = self.dataset.load(record).tokens
            except BadShardError:
                if self.config.on_bad_shard is OnBadShard.STOP:
                    raise
            else:
                counts += np.bincount(tokens, minlength=len(counts))
        return counts

    @property
    def is_bad_shard(self) -> torch.Tensor | None:
        """(training shards,) uint8: 1 for shards skipped on this rank; None where bad shards are errors."""
        return self.train_rows.stream.is_bad

    def _rows(
        self, split: str, shortening: NoShortening | SplitRow | TruncateRow, num_streams: int, seed: int
    ) -> PackedRows:
        stream = PackedStream(
            self.dataset,
            split,
            row_length=self.config.row_length,
            num_streams=num_streams,
            seed=seed,
            skips_bad=split == TRAIN and self.config.on_bad_shard is OnBadShard.SKIP,
        )
        has_document_ids = split == VALIDATION  # for the standard error of the validation metric
        return PackedRows(stream, shortening, self.config.isolate_documents, seed, has_document_ids)

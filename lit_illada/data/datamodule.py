"""What does Lightning train and validate on, and where in the stream is the run?"""

import logging
from functools import cached_property
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from lit_illada.batch import TokenBatch
from lit_illada.data.config import DataConfig, PreparedSource
from lit_illada.data.dataset import Dataset, open_dataset
from lit_illada.data.manifest import TRAIN, VALIDATION, Manifest, is_url
from lit_illada.data.packing import PackedStream
from lit_illada.data.prepare import prepare
from lit_illada.data.shortening import NoShortening, SplitRow, TruncateRow
from lit_illada.data.stream import MicroBatches, PackedLoader, PackedRows
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError

_VALIDATION_SEED = 0  # every run and every arm of a sweep is measured on the same rows
_log = logging.getLogger(__name__)


class PackedDataModule(L.LightningDataModule):
    """Packed rows of a prepared data set; prepares it first when it is missing and has a source.

    rows_seen: global rows that training has consumed, over all ranks: the position of the stream, and what a
    checkpoint keeps. Rows that loader processes have only prefetched do not count.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        seed: int,
        batch_rows: int,
        micro_batch_rows: int,
        total_steps: int,
        validation_rows: int,
    ) -> None:
        """batch_rows: of an optimizer step, over all ranks. micro_batch_rows: of one forward on one rank."""
        super().__init__()
        for name, value in {"batch_rows": batch_rows, "micro_batch_rows": micro_batch_rows}.items():
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        self.config = config
        self.seed = seed
        self.batch_rows = batch_rows
        self.micro_batch_rows = micro_batch_rows
        self.total_steps = total_steps
        self.validation_rows = validation_rows
        self.rows_seen = 0

    def prepare_data(self) -> None:
        """On one process a node. Raises UserError when `dir` holds a data set of other settings."""
        if not isinstance(self.config.source, PreparedSource) and not is_url(self.config.dir):
            prepare(self.config)

    @cached_property
    def dataset(self) -> Dataset:
        return open_dataset(self.config.dir, self.config.cache_dir)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.dataset.tokenizer()

    @property
    def manifest(self) -> Manifest:
        return self.dataset.manifest

    @property
    def accumulation(self) -> int:
        """Micro-batches of a rank in an optimizer step."""
        stride = self.micro_batch_rows * self._world_size
        if self.batch_rows % stride:
            raise UserError(
                f"batch_rows={self.batch_rows} is not a multiple of micro_batch_rows={self.micro_batch_rows} × "
                f"{self._world_size} ranks = {stride}"
            )
        return self.batch_rows // stride

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        assert self.accumulation
        rows = self._rows(TRAIN, self.config.shortening, self.seed)
        return self._loader(rows, first=self.rows_seen, last=self.total_steps * self.batch_rows)

    def val_dataloader(self) -> DataLoader[TokenBatch] | list[Any]:
        """The same rows for every seed and every setting of the training stream; none when validation_rows is 0."""
        if not self.validation_rows:
            return []
        rows = self._rows(VALIDATION, NoShortening(), _VALIDATION_SEED)
        return self._loader(rows, first=0, last=self._available(rows.stream.rows_per_epoch))

    def on_after_batch_transfer(self, batch: TokenBatch, dataloader_idx: int) -> TokenBatch:
        if self.trainer is not None and self.trainer.training:
            self.rows_seen += len(batch.row_ids) * self._world_size
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"rows_seen": self.rows_seen, "seed": self.seed, "dataset": self.manifest.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises UserError for a checkpoint of another data set or seed: its position means nothing here."""
        if state_dict["dataset"] != self.manifest.fingerprint:
            raise UserError(
                f"the checkpoint was trained on another data set (fingerprint {state_dict['dataset'][:12]}) than the "
                f"one at {self.config.dir} ({self.manifest.fingerprint[:12]}): point data.dir to that one"
            )
        if state_dict["seed"] != self.seed:
            raise UserError(f"the checkpoint was trained with seed={state_dict['seed']}; seed={self.seed} asked")
        self.rows_seen = state_dict["rows_seen"]

    def unigram_entropy(self) -> float:
        """Of the validation split, nats a token: what a model that knows only the frequencies reaches."""
        counts = np.zeros(self.manifest.vocab_size, np.int64)
        for record in self.manifest.validation.shards:
            counts += np.bincount(self.dataset.load(record).tokens, minlength=len(counts))
        p = counts[counts > 0] / counts.sum()
        return float(-(p * np.log(p)).sum())

    def _rows(self, split: str, shortening: NoShortening | SplitRow | TruncateRow, seed: int) -> PackedRows:
        stream = PackedStream(
            self.dataset, split, row_length=self.config.row_length, num_streams=self.config.num_streams, seed=seed
        )
        return PackedRows(stream, shortening, self.config.isolate_documents, seed)

    def _loader(self, rows: PackedRows, *, first: int, last: int) -> DataLoader[TokenBatch]:
        sampler = MicroBatches(
            first=first,
            last=last,
            micro_batch_rows=self.micro_batch_rows,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self._world_size,
        )
        return PackedLoader(
            rows,
            batch_size=None,  # the sampler's items are batches already
            sampler=sampler,
            num_workers=self.config.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def _available(self, rows_per_epoch: int) -> int:
        """Validation rows that there are, and the same number for every rank: unequal ranks would wait for ever."""
        available = min(self.validation_rows, rows_per_epoch)
        available -= available % self._world_size
        if not available:
            raise UserError(f"the validation split has {rows_per_epoch} rows, fewer than {self._world_size} ranks")
        if available < self.validation_rows:
            _log.warning("validating on %d rows instead of %d: no more there are", available, self.validation_rows)
        return available

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

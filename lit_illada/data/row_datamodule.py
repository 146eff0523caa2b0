"""Base of the data modules: numbered rows for training and validation, and the position in the stream."""

import logging
import math
import resource
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from lit_illada.batch import TokenBatch
from lit_illada.data.stream import MicroBatches, RowBatches, RowLoader, row_at
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError

VALIDATION_SEED = 0  # fixed, so that every run and every arm of a sweep validates on the same rows
_FILES_OF_TRAINING = 128  # open files of a training process without loader processes
_FILES_PER_WORKER = 24  # pipes, semaphores and tensors in transit of a loader process
_ROWS_AT_ONCE = 256  # read together to count tokens
_log = logging.getLogger(__name__)


class LoaderConfig(Protocol):
    """Configuration of the loader processes."""

    @property
    def num_workers(self) -> int:
        """Loader processes per rank; 0: read in the training process."""
        ...


class RowDataModule(L.LightningDataModule, ABC):
    """Numbered rows: an endless stream for training and a fixed set for validation.

    rows_seen: rows that training has consumed, over all ranks: the position in the stream, saved in checkpoints.
        Prefetched rows do not count.
    skipped_rows: ranges (start, stop) of row numbers that training skips.
    """

    def __init__(
        self,
        config: LoaderConfig,
        *,
        seed: int,
        batch_rows: int,
        micro_batch_rows: int,
        total_steps: int,
        validation_rows: int,
    ) -> None:
        """Raises UserError for a batch without rows.

        batch_rows: rows per optimizer step, over all ranks. micro_batch_rows: rows per forward on one rank.
        validation_rows: rows per validation, over all ranks; 0: no validation.
        """
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
        self.skipped_rows: list[tuple[int, int]] = []

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the content: equal fingerprints mean equal data."""

    @property
    @abstractmethod
    def location(self) -> str:
        """The setting that names the data and its value, for messages."""

    @property
    @abstractmethod
    def row_settings(self) -> dict[str, str]:
        """Settings that, with the content and the seed, determine the tokens of a row number: value by setting."""

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the rows."""

    @property
    @abstractmethod
    def train_rows(self) -> RowBatches:
        """The training stream of this seed."""

    @property
    @abstractmethod
    def val_rows(self) -> RowBatches:
        """The validation rows, the same for every seed and every setting of the training stream."""

    @abstractmethod
    def training_counts(self) -> NDArray[np.int64]:
        """(V,): token counts of the training data or of a sample; of responses if validation scores responses."""

    def unigram_cross_entropy(self) -> float:
        """Cross-entropy of the training data's token frequencies on the scored validation tokens, nats/token.

        The level that a model reaches by learning only token frequencies. One is added to every count, so that no
        token has probability 0. NaN when validation_rows is 0.
        """
        trained = self.training_counts()
        scored = np.zeros_like(trained)
        num_rows = min(self.validation_rows, self.val_rows.rows_per_epoch)
        for first in range(0, num_rows, _ROWS_AT_ONCE):
            rows = self.val_rows.arrays(np.arange(first, min(first + _ROWS_AT_ONCE, num_rows)))
            scored += np.bincount(rows.tokens[rows.is_maskable], minlength=len(scored))
        return cross_entropy(scored, trained + 1) if num_rows else math.nan

    @property
    def rows_per_epoch(self) -> int:
        """Training rows after which all data were used once."""
        return self.train_rows.rows_per_epoch

    @property
    def accumulation(self) -> int:
        """Micro-batches per rank and optimizer step. Raises UserError where batch_rows is not divisible by them."""
        stride = self.micro_batch_rows * self._world_size
        if self.batch_rows % stride:
            raise UserError(
                f"batch_rows={self.batch_rows} is not a multiple of micro_batch_rows={self.micro_batch_rows} × "
                f"{self._world_size} ranks = {stride}"
            )
        return self.batch_rows // stride

    def row_at(self, position: int) -> int:
        """The number of the training row at a position of the stream, skipped rows excluded."""
        return row_at(position, self.skipped_rows)

    def transfer_batch_to_device(self, batch: TokenBatch, device: torch.device, dataloader_idx: int) -> TokenBatch:
        """Copy from pinned memory without waiting, which Lightning does only for plain tensors."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        """The loader of the training rows from the current position on."""
        # fails before the first step if the batch is not divisible among the ranks
        assert self.accumulation
        last = self.total_steps * self.batch_rows
        return self._loader(self.train_rows, first=self.rows_seen, last=last, skipped=self.skipped_rows)

    def val_dataloader(self) -> DataLoader[TokenBatch] | list[Any]:
        """The loader of the validation rows; an empty list when validation_rows is 0."""
        if not self.validation_rows:
            return []
        return self._loader(self.val_rows, first=0, last=self._available(self.val_rows.rows_per_epoch))

    def on_after_batch_transfer(self, batch: TokenBatch, dataloader_idx: int) -> TokenBatch:
        """Counts the rows that training has received, over all ranks; prefetched rows do not count."""
        if self.trainer is not None and self.trainer.training:
            self.rows_seen += len(batch.row_ids) * self._world_size
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream, and what identifies the stream."""
        return {
            "rows_seen": self.rows_seen,
            "seed": self.seed,
            "dataset": self.fingerprint,
            "row_settings": self.row_settings,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the position. Raises UserError for a checkpoint of another data set, seed or row layout."""
        if state_dict["dataset"] != self.fingerprint:
            raise UserError(
                f"the checkpoint was trained on another data set (fingerprint {state_dict['dataset'][:12]}) than that "
                f"of {self.location} ({self.fingerprint[:12]}): use the same data set"
            )
        if state_dict["seed"] != self.seed:
            raise UserError(f"the checkpoint was trained with seed={state_dict['seed']}, not seed={self.seed}")
        for name, value in self.row_settings.items():
            if (saved := state_dict["row_settings"].get(name)) != value:
                raise UserError(f"the checkpoint was trained with {name}={saved}, not {name}={value}")
        self.rows_seen = state_dict["rows_seen"]

    def _loader(
        self, rows: RowBatches, *, first: int, last: int, skipped: Sequence[tuple[int, int]] = ()
    ) -> DataLoader[TokenBatch]:
        _require_open_files(self.config.num_workers)
        sampler = MicroBatches(
            first=first,
            last=last,
            micro_batch_rows=self.micro_batch_rows,
            rank=self._replica["rank"],
            world_size=self._world_size,
            skipped=skipped,
        )
        return RowLoader(
            rows,
            batch_size=None,  # the sampler's items are batches already
            sampler=sampler,
            num_workers=self.config.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def _available(self, rows_per_epoch: int) -> int:
        """Available validation rows, a multiple of the ranks: with unequal numbers, collectives would hang."""
        available = min(self.validation_rows, rows_per_epoch)
        available -= available % self._world_size
        if not available:
            raise UserError(f"the validation split has {rows_per_epoch} rows, fewer than {self._world_size} ranks")
        if available < self.validation_rows:
            _log.warning(
                "validating on %d rows instead of %d: %d are available, and each of %d ranks takes the same number",
                available,
                self.validation_rows,
                rows_per_epoch,
                self._world_size,
            )
        return available

    @property
    def _world_size(self) -> int:
        return self._replica["num_replicas"]

    @property
    def _replica(self) -> dict[str, int]:
        """The data-parallel size and rank, from the strategy: with tensor parallelism, ranks share rows."""
        single = {"num_replicas": 1, "rank": 0}
        return getattr(self.trainer.strategy, "distributed_sampler_kwargs", single) if self.trainer else single


def cross_entropy(counts: NDArray[np.int64], model_counts: NDArray[np.int64]) -> float:
    """−Σ p·log q in nats. counts: of p. model_counts: of q, all above 0."""
    p, q = counts / counts.sum(), model_counts / model_counts.sum()
    return float(-(p * np.log(q)).sum())


def _require_open_files(num_workers: int) -> None:
    """Increases the process's limit of open files to what the loaders need, since their queues hang below it.

    Raises UserError where the system does not allow it.
    """
    if not num_workers:
        return
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _FILES_OF_TRAINING + _FILES_PER_WORKER * num_workers
    if limit >= needed or limit == resource.RLIM_INFINITY:
        return
    if most == resource.RLIM_INFINITY or most >= needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))
        return
    raise UserError(
        f"a process may open {limit} files here (ulimit -n), and num_workers={num_workers} needs about {needed}: raise "
        "the limit (ulimit -n 1024), or set num_workers=0"
    )

"""Data module of alignment: which completions of which prompts each micro-batch updates on, by position.

Optimizer step s belongs to rollout s // updates. Rollout r has prompts_per_step prompts, at positions
r·prompts_per_step … of an endless stream, each pass over the prompts in another order. All of it is a function of the
position, so a run resumes exactly and the completions do not depend on the number of ranks.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_illada.alignment.prompts import Prompt, Prompts
from lit_illada.batch import Movable
from lit_illada.data.stream import MicroBatches
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.runtime.counter_rng import permutation

_ORDER = 11  # key of the order of the prompts


@dataclass(frozen=True, eq=False)
class CompletionBatch(Movable):
    """A micro-batch: completions of the current rollout."""

    update: int
    """Optimizer step within the rollout, from 0."""
    index: Tensor
    """(B,) int64, completions among those of this rank's rollout."""
    groups: range
    """Positions of the rollout's prompts on this rank, in the stream of prompts."""

    @property
    def is_first(self) -> bool:
        """Whether a rollout begins with this micro-batch."""
        return self.update == 0 and bool(self.index[0] == 0)


@dataclass(frozen=True, eq=False)
class HeldOutBatch(Movable):
    """Held-out prompts, by index."""

    index: list[int]


class AlignDataModule(L.LightningDataModule):
    """Prompts by position for training, and a fixed set of held-out prompts.

    rows_seen: completions that training has consumed, once per update, over all ranks; saved in checkpoints.
    """

    def __init__(
        self,
        prompts: Prompts,
        tokenizer: Tokenizer,
        *,
        seed: int,
        group_size: int,
        updates: int,
        batch_rows: int,
        micro_batch_rows: int,
        total_steps: int,
        rollout_rows: int,
    ) -> None:
        """
        Args:
            prompts: of training and validation.
            tokenizer: saved with the run.
            seed: of the order of the prompts.
            group_size: completions per prompt.
            updates: optimizer steps per rollout.
            batch_rows: completions per optimizer step, over all ranks.
            micro_batch_rows: completions per forward pass of a rank, also of held-out pairs.
            total_steps: optimizer steps of the run.
            rollout_rows: held-out prompts per batch.
        """
        super().__init__()
        self.prompts = prompts
        self.tokenizer = tokenizer
        self.seed = seed
        self.group_size = group_size
        self.updates = updates
        self.batch_rows = batch_rows
        self.micro_batch_rows = micro_batch_rows
        self.total_steps = total_steps
        self.rollout_rows = rollout_rows
        self.rows_seen = 0
        self.skipped_rows: list[tuple[int, int]] = []

    @property
    def fingerprint(self) -> str:
        """Hash of the training prompts."""
        content = [[prompt.ids, prompt.answers] for prompt in self.prompts.train]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def accumulation(self) -> int:
        """Micro-batches per rank and optimizer step."""
        return self.batch_rows // (self.micro_batch_rows * self._world_size)

    def prompt_at(self, position: int) -> Prompt:
        """The prompt at a position of the endless stream."""
        epoch, index = divmod(position, len(self.prompts.train))
        return self.prompts.train[self._order(epoch)[index]]

    def row_at(self, position: int) -> int:
        """The position itself: prompts are never skipped."""
        return position

    def unigram_cross_entropy(self) -> float:
        """NaN: completions have no fixed text."""
        return math.nan

    def train_dataloader(self) -> DataLoader[CompletionBatch]:
        sampler = MicroBatches(
            first=self.rows_seen,
            last=self.total_steps * self.batch_rows,
            micro_batch_rows=self.micro_batch_rows,
            rank=self._replica["rank"],
            world_size=self._world_size,
        )
        return DataLoader(_Positions(self, self._replica["rank"], self._world_size), batch_size=None, sampler=sampler)

    def val_dataloader(self) -> DataLoader[HeldOutBatch]:
        """Held-out prompts; ranks without one for a batch repeat the first, since all must run equally many batches."""
        rank, world_size = self._replica["rank"], self._world_size
        # a pair is two completions that are scored, not sampled
        is_pair = self.prompts.held_out[0].answers is not None
        size = max(1, self.micro_batch_rows // 2) if is_pair else self.rollout_rows
        num = len(self.prompts.held_out)
        batches = []
        for start in range(0, num, size * world_size):
            own = list(range(start + rank, min(start + size * world_size, num), world_size))
            batches.append(HeldOutBatch(own or [0]))
        return DataLoader(_Listed(batches), batch_size=None)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Counts the completions that training has received, over all ranks."""
        if self.trainer is not None and self.trainer.training:
            self.rows_seen += len(batch.index) * self._world_size
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"rows_seen": self.rows_seen, "dataset": self.fingerprint, **self._settings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the position. Raises UserError for a checkpoint of other prompts, seed or rollouts."""
        if state_dict["dataset"] != self.fingerprint:
            raise UserError("the checkpoint was trained on other prompts: use the same task, problems and preferences")
        for name, value in self._settings.items():
            if (saved := state_dict[name]) != value:
                raise UserError(f"the checkpoint was trained with {name}={saved}, not {name}={value}")
        self.rows_seen = state_dict["rows_seen"]

    def batch_at(self, rows: Sequence[int], rank: int, world_size: int) -> CompletionBatch:
        """The micro-batch of these positions in the stream of completions, every world_size-th one from `rank` on."""
        step, first = divmod(rows[0], self.batch_rows)
        rollout, update = divmod(step, self.updates)
        per_rank = self.batch_rows // world_size // self.group_size
        start = (rollout * world_size + rank) * per_rank
        index = torch.arange(first // world_size, first // world_size + len(rows))
        return CompletionBatch(update, index, range(start, start + per_rank))

    @property
    def _settings(self) -> dict[str, Any]:
        names = {"seed": self.seed, "alignment.group_size": self.group_size, "alignment.updates": self.updates}
        return names

    @lru_cache(maxsize=4)  # noqa: B019  one data module per run
    def _order(self, epoch: int) -> list[int]:
        return permutation(len(self.prompts.train), self.seed, _ORDER, epoch).tolist()

    @property
    def _world_size(self) -> int:
        return self._replica["num_replicas"]

    @property
    def _replica(self) -> dict[str, int]:
        """Data-parallel size and rank."""
        single = {"num_replicas": 1, "rank": 0}
        return getattr(self.trainer.strategy, "distributed_sampler_kwargs", single) if self.trainer else single


@dataclass(frozen=True)
class _Positions(Dataset[CompletionBatch]):
    datamodule: AlignDataModule
    rank: int
    world_size: int

    def __getitem__(self, rows: Sequence[int]) -> CompletionBatch:
        return self.datamodule.batch_at(rows, self.rank, self.world_size)


@dataclass(frozen=True)
class _Listed(Dataset[HeldOutBatch]):
    batches: list[HeldOutBatch]

    def __getitem__(self, index: int) -> HeldOutBatch:
        return self.batches[index]

    def __len__(self) -> int:
        return len(self.batches)

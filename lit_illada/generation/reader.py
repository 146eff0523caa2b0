"""Model calls during generation, with an optional key-value cache and classifier-free guidance.

Shapes: A active rows, T tokens, L tokens of the block, M masked positions in row-major order, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from lit_illada.batch import Layout
from lit_illada.generation.cache import CachePlan
from lit_illada.model.kv_cache import KeyValueCache


class LogitsFn(Protocol):
    """Logits (M, V) of the selected tokens in row-major order. `Transformer` satisfies this protocol."""

    def __call__(
        self, input_ids: Tensor, layout: Layout, select: Tensor, *, cache: KeyValueCache | None, start: int
    ) -> Tensor:
        """input_ids, select: (A, T), or with a cache a window of the layout's columns that begins at `start`."""
        ...


class Reader:
    """Computes the logits of masked positions; holds the caches between the steps of a block."""

    def __init__(
        self,
        logits_fn: LogitsFn,
        plan: CachePlan,
        num_padding: Sequence[int],
        *,
        prompt_length: int,
        guidance_scale: float,
        mask_token_id: int,
        lookback: int,
        blocks: Tensor | None = None,
    ) -> None:
        """
        Args:
            plan: the columns that each step computes.
            num_padding: columns of padding before each row of the batch.
            guidance_scale: strength of classifier-free guidance, logits + scale · (logits − logits with the prompt
                masked) (LLaDA, arXiv 2502.09992); 0: off.
            lookback: columns before a position that its logits need besides attention: 1 for a model that predicts
                the next token, else 0.
            blocks: (T,) int64, block of each column under block-causal attention, which makes the cache exact: a block
                computes the columns from the block before it on, whose tokens are final only now, and its later steps
                those of its own. None: attention sees all columns.
        """
        self._prompt_length = prompt_length
        self._guidance_scale = guidance_scale
        self._mask_token_id = mask_token_id
        self._conditional = _Pass(logits_fn, plan, num_padding, lookback, blocks)
        self._unconditional = _Pass(logits_fn, plan, num_padding, lookback, blocks)

    @property
    def num_forwards(self) -> int:
        """Forward passes so far, guidance included."""
        return self._conditional.num_forwards + self._unconditional.num_forwards

    def read(self, token_ids_AT: Tensor, is_masked_AL: Tensor, rows: list[int], block: slice, step: int) -> Tensor:
        """Logits (M, V) of the masked positions of a block.

        rows: indices of the active rows in the batch; within a block a row that was left out may not return, since its
        cache is gone. step: index of the step within the block, from 0.
        """
        logits_MV = self._conditional.read(token_ids_AT, is_masked_AL, rows, block, step)
        if self._guidance_scale == 0:
            return logits_MV
        promptless_AT = token_ids_AT.clone()
        promptless_AT[:, : self._prompt_length] = self._mask_token_id
        base_MV = self._unconditional.read(promptless_AT, is_masked_AL, rows, block, step)
        return base_MV + (self._guidance_scale + 1) * (logits_MV - base_MV)


class _Pass:
    """The conditional or the unconditional forward pass, with its cache."""

    def __init__(
        self,
        logits_fn: LogitsFn,
        plan: CachePlan,
        num_padding: Sequence[int],
        lookback: int,
        blocks: Tensor | None,
    ) -> None:
        self._logits_fn = logits_fn
        self._plan = plan
        self._num_padding = num_padding
        self._lookback = lookback
        self._blocks = blocks
        self._cache: KeyValueCache | None = None
        self._rows: list[int] = []
        self._prefix: _Prefix | None = None
        self.num_forwards = 0

    def read(self, token_ids_AT: Tensor, is_masked_AL: Tensor, rows: list[int], block: slice, step: int) -> Tensor:
        num_columns = token_ids_AT.shape[1]
        window = self._plan.window(step, block, num_columns)
        if self._blocks is not None and self._plan.is_on and step == 0:
            window = slice(self._begin(rows, block), num_columns)
        elif window == slice(0, num_columns):
            self._cache = KeyValueCache() if self._plan.is_on else None
        elif rows != self._rows:
            assert self._cache is not None
            self._cache = self._cache.of_rows([self._rows.index(row) for row in rows])
        window = slice(max(0, window.start - self._lookback), window.stop)
        self._rows = rows
        layout = Layout.left_padded([self._num_padding[row] for row in rows], num_columns, token_ids_AT.device)
        if self._blocks is not None:
            layout = replace(layout, blocks=self._blocks[:num_columns].expand(len(rows), -1))
        is_selected = F.pad(is_masked_AL, (block.start - window.start, window.stop - block.stop))
        self.num_forwards += 1
        return self._logits_fn(token_ids_AT[:, window], layout, is_selected, cache=self._cache, start=window.start)

    def _begin(self, rows: list[int], block: slice) -> int:
        """Take over what the cache knows at the first step of a block; returns the first column to compute."""
        prefix = self._prefix
        if prefix is None or not set(rows) <= set(prefix.rows):
            start, cache = 0, KeyValueCache()
        else:
            start = min(prefix.num_columns, block.start)
            cache = prefix.cache if rows == prefix.rows else prefix.cache.of_rows([prefix.rows.index(r) for r in rows])
        self._cache, self._prefix = cache, _Prefix(cache, rows, block.start)
        return start


@dataclass(frozen=True, eq=False)
class _Prefix:
    """The cache of all rows at the first step of a block; later steps may reduce a copy of it to fewer rows."""

    cache: KeyValueCache
    rows: list[int]
    num_columns: int
    """Columns before the block, whose keys and values are final."""

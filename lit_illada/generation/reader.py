"""What does the model say of the masked tokens of a block, under a cache and under guidance?

Shapes: B rows, A of them in the step, T tokens, L tokens of the block, M masked tokens in row-major order,
V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from lit_illada.batch import Layout
from lit_illada.generation.cache import CachePlan
from lit_illada.model.kv_cache import KeyValueCache


class LogitsFn(Protocol):
    """Logits (M, V) of the selected tokens in row-major order. The transformer itself is one."""

    def __call__(
        self, input_ids: Tensor, layout: Layout, select: Tensor, *, cache: KeyValueCache | None, start: int
    ) -> Tensor:
        """input_ids, select: (A, T), or a window of the layout's columns, from `start` on, with a cache for others."""
        ...


class Reader:
    """Asks the model, and holds what it remembers from one step to the next.

    num_padding: columns before each row's first token. guidance_scale: 0, or the strength of classifier-free guidance
    as LLaDA has it: logits + scale · (logits − those with the prompt masked) (arXiv 2502.09992). lookback: columns
    before a token that its logits are computed from, beside attention: 1 for a model whose predictions are shifted.
    """

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
    ) -> None:
        self._prompt_length = prompt_length
        self._guidance_scale = guidance_scale
        self._mask_token_id = mask_token_id
        self._conditional = _Pass(logits_fn, plan, num_padding, lookback)
        self._unconditional = _Pass(logits_fn, plan, num_padding, lookback)

    @property
    def num_forwards(self) -> int:
        return self._conditional.num_forwards + self._unconditional.num_forwards

    def read(self, token_ids_AT: Tensor, is_masked_AL: Tensor, rows: list[int], block: slice, step: int) -> Tensor:
        """Logits (M, V) of the block's masked tokens. rows: which of the batch's these are; within a block none may
        come back that an earlier step left out. step: of the block, from 0."""
        logits_MV = self._conditional.read(token_ids_AT, is_masked_AL, rows, block, step)
        if self._guidance_scale == 0:
            return logits_MV
        promptless_AT = token_ids_AT.clone()
        promptless_AT[:, : self._prompt_length] = self._mask_token_id
        base_MV = self._unconditional.read(promptless_AT, is_masked_AL, rows, block, step)
        return base_MV + (self._guidance_scale + 1) * (logits_MV - base_MV)


class _Pass:
    """One kind of pass with its own cache."""

    def __init__(self, logits_fn: LogitsFn, plan: CachePlan, num_padding: Sequence[int], lookback: int) -> None:
        self._logits_fn = logits_fn
        self._plan = plan
        self._num_padding = num_padding
        self._lookback = lookback
        self._cache: KeyValueCache | None = None
        self._rows: list[int] = []
        self.num_forwards = 0

    def read(self, token_ids_AT: Tensor, is_masked_AL: Tensor, rows: list[int], block: slice, step: int) -> Tensor:
        num_columns = token_ids_AT.shape[1]
        window = self._plan.window(step, block, num_columns)
        if window == slice(0, num_columns):
            self._cache = KeyValueCache() if self._plan.is_on else None
        elif rows != self._rows:
            assert self._cache is not None
            self._cache.keep([self._rows.index(row) for row in rows])
        window = slice(max(0, window.start - self._lookback), window.stop)
        self._rows = rows
        layout = Layout.left_padded([self._num_padding[row] for row in rows], num_columns, token_ids_AT.device)
        is_selected = F.pad(is_masked_AL, (block.start - window.start, window.stop - block.stop))
        self.num_forwards += 1
        return self._logits_fn(token_ids_AT[:, window], layout, is_selected, cache=self._cache, start=window.start)

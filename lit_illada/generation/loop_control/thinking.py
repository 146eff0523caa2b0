"""Reasoning segments: which rows have an open one, when it is closed, and by what.

Shapes: A active rows of the batch, T tokens so far, L tokens of the block, M masked positions in row-major order, R of
them, the leftmost of each row with an open segment, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_illada.errors import UserError
from lit_illada.generation.canvas import ThinkingEnd
from lit_illada.generation.logit_controls import Positions, TokenKinds
from lit_illada.generation.loop_control.thinking_stop import ThinkingStop, certain


@dataclass(frozen=True)
class _Raised:
    """A raised logit of the closing token in this step."""

    column: int
    """Column where it was raised."""
    end: ThinkingEnd
    """Cause to record if the token is committed there."""


class Thinking:
    """Logit control at the leftmost masked position of each row with an open reasoning segment.

    A segment extends from the opening to the closing token. For a tokenizer without an opening token it begins with the
    new tokens. The control also records how segments were closed.
    """

    def __init__(self, rule: ThinkingStop, kinds: TokenKinds, max_new_tokens: int, prompt_length: int) -> None:
        """Raises UserError if the tokenizer has no closing token."""
        if kinds.think_close_id is None:
            raise UserError(
                "generation.thinking_stop or generation.early_exit is set, but the tokenizer names no "
                "think_close_token: add it to its tokenizer_config.json, or set both to none"
            )
        self._rule = rule
        self.close_id = kinds.think_close_id
        self._open_id = kinds.think_open_id
        self._max_new_tokens = max_new_tokens
        self._prompt_length = prompt_length
        self._due: set[int] = set()
        self._raised: dict[int, _Raised] = {}
        self._ended: dict[int, _Raised] = {}

    def request_close(self, row: int) -> None:
        """Closes the row's segment at the next leftmost masked position."""
        self._due.add(row)

    def is_open(self, token_ids_AT: Tensor, columns_A: Tensor) -> Tensor:
        """(A,) bool: whether the segment is open at these columns: no closing token follows its opening."""
        column_T = torch.arange(token_ids_AT.shape[1], device=token_ids_AT.device)
        close_A = _last(token_ids_AT == self.close_id, column_T)
        if self._open_id is None:
            return close_A < self._prompt_length
        is_before_AT = column_T < columns_A[:, None]
        return _last((token_ids_AT == self._open_id) & is_before_AT, column_T) > close_A

    def __call__(self, logits_MV: Tensor, positions: Positions) -> Tensor:
        """Raises the closing token where the rule or a requested early exit applies."""
        self._raised = {}
        before_M = F.pad(positions.rows, (1, 0), value=-1)[:-1]
        first_R = (positions.rows != before_M).nonzero()[:, 0]
        is_open_R = self.is_open(positions.token_ids[positions.rows[first_R]], positions.columns[first_R])
        first_R = first_R[is_open_R]
        columns_R = positions.columns[first_R]
        num_tokens_R = columns_R - positions.prompt_length
        rows = positions.batch_rows[positions.rows[first_R]].tolist()
        is_due_R = torch.tensor([row in self._due for row in rows], dtype=torch.bool, device=logits_MV.device)
        is_raised_R = is_due_R | self._rule.acts_on(num_tokens_R, self._max_new_tokens)
        if not is_raised_R.any():
            return logits_MV
        logits_RV = logits_MV[first_R]
        raised_RV = self._rule(logits_RV, num_tokens_R, self.close_id, self._max_new_tokens)
        raised_RV = torch.where(is_due_R[:, None], certain(raised_RV, self.close_id), raised_RV)
        is_natural_R = logits_RV.argmax(-1) == self.close_id
        decisions = zip(rows, columns_R.tolist(), is_raised_R.tolist(), is_natural_R.tolist(), strict=True)
        for row, column, is_raised, is_natural in decisions:
            if is_raised:
                self._raised[row] = _Raised(column, self._end(row, is_natural))
        return logits_MV.index_copy(0, first_R, raised_RV)

    def committed(self, rows: list[int], block: slice, token_ids_AL: Tensor, is_committed_AL: Tensor) -> dict[int, int]:
        """Records a step. Returns the column of the closing token, by row, where it was raised and committed."""
        closed = {}
        is_close_AL = is_committed_AL & (token_ids_AL == self.close_id)
        for number, row in enumerate(rows):
            raised = self._raised.get(row)
            if raised is not None and is_close_AL[number, raised.column - block.start]:
                self._ended[row] = raised
                self._due.discard(row)
                closed[row] = raised.column
        self._raised = {}
        return closed

    def end_of(self, row: int, new_ids: Sequence[int]) -> ThinkingEnd:
        """How the segment in the row's final text ended."""
        if self.close_id not in new_ids:
            return ThinkingEnd.none
        ended = self._ended.get(row)
        index = None if ended is None else ended.column - self._prompt_length
        if ended is None or index is None or index >= len(new_ids) or new_ids[index] != self.close_id:
            return ThinkingEnd.natural
        return ended.end

    def _end(self, row: int, is_natural: bool) -> ThinkingEnd:
        if is_natural:
            return ThinkingEnd.natural
        return ThinkingEnd.early_exit if row in self._due else ThinkingEnd.forced


def _last(is_true_AT: Tensor, column_T: Tensor) -> Tensor:
    """(A,): the last true column; −1 if there is none."""
    return torch.where(is_true_AT, column_T, -1).amax(-1)

"""Detection of loops at the end of blocks, and the configured response to them.

Shapes: A active rows, T tokens so far, N new tokens, M masked positions in row-major order, L tokens of the block,
V vocabulary.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from lit_illada.generation.canvas import Alarm
from lit_illada.generation.logit_controls import Positions
from lit_illada.generation.loop_control.loop_response import RemaskSpan, TemperatureKick


@dataclass(eq=False)
class _Row:
    """State of a row; arrays are (N,), one entry per new token."""

    num_remasks: np.ndarray
    """Remaskings of each position."""
    forbidden_ids: np.ndarray
    """Token that each position may not get, −1 for none."""
    num_steps: int = 0
    """Denoising steps so far."""
    raised_from: int | None = None
    """First column of the block with a raised temperature; None: no such block."""
    alarms: list[Alarm] = field(default_factory=list)
    """Loops detected so far."""


class LoopWatch:
    """Detects loops at the end of blocks, responds, and records them. As a logit control it forbids looped tokens."""

    def __init__(
        self, response: RemaskSpan | TemperatureKick, num_rows: int, max_new_tokens: int, prompt_length: int
    ) -> None:
        self._response = response
        self._prompt_length = prompt_length
        self._rows = [_Row(np.zeros(max_new_tokens, np.int64), np.full(max_new_tokens, -1)) for _ in range(num_rows)]

    def check(self, token_ids_BT: Tensor, block: slice, row: int, mask_token_id: int) -> Tensor | None:
        """Responds to loops that reach into the block. Masks tokens in place; returns them, (T,) bool, or None."""
        state, first = self._rows[row], block.start - self._prompt_length
        new_ids_N = token_ids_BT[row, self._prompt_length : block.stop]
        is_remasked_N = np.zeros(len(new_ids_N), bool)
        for run in self._response.runs(new_ids_N):
            if run.end <= first:
                continue
            alarm = Alarm(run.start, run.period, run.length, state.num_steps)
            match self._response:
                case TemperatureKick():
                    state.raised_from = block.stop
                case RemaskSpan(max_remasks=max_remasks):
                    span = slice(run.onset, run.end)
                    is_new_N = (state.num_remasks[span] < max_remasks) & ~is_remasked_N[span]
                    is_remasked_N[span] |= is_new_N
                    alarm = replace(alarm, num_remasked=int(is_new_N.sum()))
            state.alarms.append(alarm)
        if not is_remasked_N.any():
            return None
        remasked = np.flatnonzero(is_remasked_N)
        state.num_remasks[remasked] += 1
        state.forbidden_ids[remasked] = new_ids_N.cpu().numpy()[remasked]
        is_due_T = torch.zeros_like(token_ids_BT[row], dtype=torch.bool)
        is_due_T[torch.from_numpy(remasked + self._prompt_length).to(token_ids_BT.device)] = True
        token_ids_BT[row, is_due_T] = mask_token_id
        return is_due_T

    def __call__(self, logits_MV: Tensor, positions: Positions) -> Tensor:
        """Forbids the previous tokens of remasked positions."""
        states = [self._rows[row] for row in positions.batch_rows.tolist()]
        if not any((state.forbidden_ids >= 0).any() for state in states):
            return logits_MV
        forbidden_AN = torch.from_numpy(np.stack([state.forbidden_ids for state in states])).to(logits_MV.device)
        forbidden_M = forbidden_AN[positions.rows, positions.columns - positions.prompt_length]
        limited = (forbidden_M >= 0).nonzero()[:, 0]
        logits_MV[limited, forbidden_M[limited]] = -torch.inf
        return logits_MV

    def committed(self, rows: list[int], block: slice, is_committed_AL: Tensor) -> None:
        """Records a step: committed positions lose their forbidden token."""
        first = block.start - self._prompt_length
        for row, is_committed_L in zip(rows, is_committed_AL.cpu().numpy(), strict=True):
            state = self._rows[row]
            state.num_steps += 1
            state.forbidden_ids[first + np.flatnonzero(is_committed_L)] = -1

    def increase(self, row: int, block: slice) -> float:
        """Increase of the row's temperature in this block, 0 for none."""
        if isinstance(self._response, TemperatureKick) and self._rows[row].raised_from == block.start:
            return self._response.increase
        return 0.0

    def alarms(self, row: int) -> tuple[Alarm, ...]:
        """Loops detected in the row, in the order of their steps."""
        return tuple(self._rows[row].alarms)

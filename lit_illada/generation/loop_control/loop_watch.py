"""Detection of loops at the end of blocks, and the configured response to them.

Shapes: B rows, T tokens so far, N new tokens, M masked tokens in row-major order, L tokens of the block, V vocabulary.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from lit_illada.generation.canvas import Alarm
from lit_illada.generation.logit_controls import Place
from lit_illada.generation.loop_control.loop_response import RemaskSpan, TemperatureKick


@dataclass(eq=False)
class _Row:
    """What is remembered of a row; the arrays are (N,), by new token. forbidden_ids: −1 where none is."""

    num_remasks: np.ndarray
    forbidden_ids: np.ndarray
    num_steps: int = 0
    hot_from: int | None = None
    alarms: list[Alarm] = field(default_factory=list)


class LoopWatch:
    """Looks for loops at the end of blocks, responds, and keeps the alarms. A control: it forbids looped tokens."""

    def __init__(
        self, response: RemaskSpan | TemperatureKick, num_rows: int, max_new_tokens: int, prompt_length: int
    ) -> None:
        self._response = response
        self._prompt_length = prompt_length
        self._rows = [_Row(np.zeros(max_new_tokens, np.int64), np.full(max_new_tokens, -1)) for _ in range(num_rows)]

    def look(self, token_ids_BT: Tensor, block: slice, row: int, mask_token_id: int) -> Tensor | None:
        """Responds to loops that reach into the block. (T,) bool: what is masked again, in place; None: nothing."""
        state, first = self._rows[row], block.start - self._prompt_length
        new_ids_N = token_ids_BT[row, self._prompt_length : block.stop]
        is_remasked_N = np.zeros(len(new_ids_N), bool)
        for run in self._response.runs(new_ids_N):
            if run.end <= first:
                continue
            alarm = Alarm(run.start, run.period, run.length, state.num_steps)
            match self._response:
                case TemperatureKick():
                    state.hot_from = block.stop
                case RemaskSpan(max_remasks=most):
                    span = slice(run.onset, run.end)
                    is_new_N = (state.num_remasks[span] < most) & ~is_remasked_N[span]
                    is_remasked_N[span] |= is_new_N
                    alarm = replace(alarm, num_remasked=int(is_new_N.sum()))
            state.alarms.append(alarm)
        if not is_remasked_N.any():
            return None
        at = np.flatnonzero(is_remasked_N)
        state.num_remasks[at] += 1
        state.forbidden_ids[at] = new_ids_N.cpu().numpy()[at]
        is_due_T = torch.zeros_like(token_ids_BT[row], dtype=torch.bool)
        is_due_T[torch.from_numpy(at + self._prompt_length).to(token_ids_BT.device)] = True
        token_ids_BT[row, is_due_T] = mask_token_id
        return is_due_T

    def __call__(self, logits_MV: Tensor, place: Place) -> Tensor:
        states = [self._rows[row] for row in place.batch_rows.tolist()]
        if not any((state.forbidden_ids >= 0).any() for state in states):
            return logits_MV
        forbidden_AN = torch.from_numpy(np.stack([state.forbidden_ids for state in states])).to(logits_MV.device)
        forbidden_M = forbidden_AN[place.rows, place.columns - place.prompt_length]
        at = (forbidden_M >= 0).nonzero()[:, 0]
        logits_MV[at, forbidden_M[at]] = -torch.inf
        return logits_MV

    def committed(self, rows: list[int], block: slice, is_committed_AL: Tensor) -> None:
        """A step was made: what is written may be written again."""
        first = block.start - self._prompt_length
        for row, is_committed_L in zip(rows, is_committed_AL.cpu().numpy(), strict=True):
            state = self._rows[row]
            state.num_steps += 1
            state.forbidden_ids[first + np.flatnonzero(is_committed_L)] = -1

    def increase(self, row: int, block: slice) -> float:
        """By how much the row's temperature is raised in this block."""
        is_hot = isinstance(self._response, TemperatureKick) and self._rows[row].hot_from == block.start
        return self._response.increase if is_hot and isinstance(self._response, TemperatureKick) else 0.0

    def alarms(self, row: int) -> tuple[Alarm, ...]:
        return tuple(self._rows[row].alarms)

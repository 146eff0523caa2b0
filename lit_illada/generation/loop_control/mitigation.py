"""Mitigations of overlong reasoning segments and loops, as configured, and the record of their interventions.

State is per row, so the text of a row does not depend on its batch. Without a configured mitigation no control is added
and the logits stay bit for bit the same. Shapes: B rows, A of them active in a step, T tokens so far, L tokens of the
block, M masked positions in row-major order, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lit_illada.generation.canvas import RowEvents, ThinkingEnd
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.draws import Draws
from lit_illada.generation.logit_controls import LogitControl, TokenKinds
from lit_illada.generation.loop_control.early_exit import Settled, Trials
from lit_illada.generation.loop_control.loop_response import NoResponse
from lit_illada.generation.loop_control.loop_watch import LoopWatch
from lit_illada.generation.loop_control.repetition import RepetitionControl
from lit_illada.generation.loop_control.thinking import Thinking
from lit_illada.generation.proposals import Proposals, propose


class Mitigations:
    """The configured mitigations of one generation. `controls` are their logit controls, in order of application."""

    def __init__(
        self,
        config: GenerationConfig,
        kinds: TokenKinds,
        *,
        mask_token_id: int,
        stop_token_ids: Tensor,
        num_rows: int,
        prompt_length: int,
        read: Callable[[Tensor, Tensor, list[int], slice], Tensor] | None = None,
    ) -> None:
        """read: computes the logits of masked positions, for trials. Raises UserError without a closing token."""
        self._config = config
        self._kinds = kinds
        self._mask_token_id = mask_token_id
        self._stop_token_ids = stop_token_ids
        self._prompt_length = prompt_length
        self.controls: list[LogitControl] = []
        if config.repetition.is_on:
            exempt = torch.tensor(list(kinds.unpenalised_ids), dtype=torch.int64, device=stop_token_ids.device)
            exempt = torch.cat((exempt, stop_token_ids)).unique()
            self.controls.append(RepetitionControl(config.repetition, mask_token_id, exempt))
        self._loops = None
        if not isinstance(config.on_loop, NoResponse):
            self._loops = LoopWatch(config.on_loop, num_rows, config.max_new_tokens, prompt_length)
            self.controls.append(self._loops)
        self._thinking = None
        if config.thinking_stop.is_on or config.early_exit.is_on:
            self._thinking = Thinking(config.thinking_stop, kinds, config.max_new_tokens, prompt_length)
            self.controls.append(self._thinking)
        self._trials = None
        if isinstance(config.early_exit, Settled):
            assert read is not None
            assert self._thinking is not None
            self._trials = Trials(
                config.early_exit,
                read,
                close_id=self._thinking.close_id,
                mask_token_id=mask_token_id,
                num_columns=prompt_length + config.max_new_tokens,
                num_rows=num_rows,
            )

    @property
    def is_on(self) -> bool:
        """Whether a mitigation does more than change logits."""
        return self._loops is not None or self._thinking is not None

    def resample(
        self, proposals: Proposals, logits_MV: Tensor, rows: list[int], block: slice, draws: Draws
    ) -> Proposals:
        """Samples the proposals of rows after a loop again, at a higher temperature. logits_MV: after controls."""
        if self._loops is None:
            return proposals
        increases = [self._loops.increase(row, block) for row in rows]
        raised = [number for number, increase in enumerate(increases) if increase > 0]
        if not raised:
            return proposals
        is_raised_A = torch.tensor([increase > 0 for increase in increases], device=logits_MV.device)
        is_raised_AL = proposals.is_masked & is_raised_A[:, None]
        again = propose(
            logits_MV[is_raised_AL[proposals.is_masked]],
            proposals.is_masked[is_raised_A],
            draws.of([rows[number] for number in raised]),
            temperature=self._config.temperature + max(increases),
            top_p=self._config.top_p,
            uncertain_token_ids=self._stop_token_ids[:0],
        )
        token_ids_AL = proposals.token_ids.clone()
        token_ids_AL[is_raised_A] = again.token_ids
        return Proposals(token_ids_AL, proposals.is_masked, proposals.logits)

    def committed(self, rows: list[int], block: slice, token_ids_AL: Tensor, is_committed_AL: Tensor) -> dict[int, int]:
        """Records a step. Returns the column of the closing token by row, where a mitigation closed the segment.

        Tokens behind that column assumed that the segment continues, so the caller must mask them again.
        """
        if self._loops is not None:
            self._loops.committed(rows, block, is_committed_AL)
        if self._thinking is None:
            return {}
        return self._thinking.committed(rows, block, token_ids_AL, is_committed_AL)

    def remasked(self, token_ids_BT: Tensor, block: slice, rows: list[int]) -> Tensor | None:
        """Masks looped tokens again after a block, in place. Returns their positions, (B, T) bool, or None."""
        if self._loops is None:
            return None
        is_due_BT = torch.zeros_like(token_ids_BT, dtype=torch.bool)
        for row in self._unfinished(token_ids_BT, block, rows):
            is_due_T = self._loops.check(token_ids_BT, block, row, self._mask_token_id)
            if is_due_T is not None:
                is_due_BT[row] = is_due_T
        return is_due_BT if is_due_BT.any() else None

    def finished(self, token_ids_BT: Tensor, block: slice, rows: list[int]) -> None:
        """Runs the trials of an early exit after a final block; settled segments are closed in the next block."""
        if self._trials is None or self._thinking is None:
            return
        rows = self._unfinished(token_ids_BT, block, rows)
        token_ids_AT = token_ids_BT[rows]
        ends_A = torch.full((len(rows),), block.stop, device=token_ids_BT.device)
        is_open_A = self._thinking.is_open(token_ids_AT, ends_A)
        thinking = [row for row, is_open in zip(rows, is_open_A.tolist(), strict=True) if is_open]
        for row in self._trials.settled(token_ids_AT[is_open_A], thinking, block):
            self._thinking.request_close(row)

    def events_of(self, row: int, new_ids: list[int]) -> RowEvents:
        """The interventions in a row, given its final text without the stop token."""
        alarms = () if self._loops is None else self._loops.alarms(row)
        if self._thinking is not None:
            return RowEvents(self._thinking.end_of(row, new_ids), alarms)
        is_closed = self._kinds.think_close_id in new_ids
        return RowEvents(ThinkingEnd.natural if is_closed else ThinkingEnd.none, alarms)

    def _unfinished(self, token_ids_BT: Tensor, block: slice, rows: list[int]) -> list[int]:
        """The rows without a stop token."""
        new_ids_AN = token_ids_BT[rows, self._prompt_length : block.stop]
        is_stopped_A = torch.isin(new_ids_AN, self._stop_token_ids).any(-1)
        return [row for row, is_stopped in zip(rows, is_stopped_A.tolist(), strict=True) if not is_stopped]

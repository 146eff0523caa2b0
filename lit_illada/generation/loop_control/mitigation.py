"""What is done to a generation against endless thought and loops, as the config chooses, and what is kept of it.

Every row has a state of its own, so that its text does not depend on the batch it is in. With nothing chosen this adds
no control, looks at nothing, and changes no bit. Shapes: B rows, A of them in a step, T tokens so far, L tokens of the
block, M masked tokens in row-major order, V vocabulary.
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
    """controls: what they change in the logits, in this order; one before another is seen by it."""

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
        """read: logits of masked tokens, for a trial of the answer. Raises UserError where a token is missing."""
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
        """Whether any mitigation acts beside its logit control."""
        return self._loops is not None or self._thinking is not None

    def redrawn(
        self, proposals: Proposals, logits_MV: Tensor, rows: list[int], block: slice, draws: Draws
    ) -> Proposals:
        """The proposals; rows after a loop alarm are drawn again at a higher temperature. logits_MV: after controls."""
        if self._loops is None:
            return proposals
        increases = [self._loops.increase(row, block) for row in rows]
        hot = [number for number, increase in enumerate(increases) if increase > 0]
        if not hot:
            return proposals
        is_hot_A = torch.tensor([increase > 0 for increase in increases], device=logits_MV.device)
        is_hot_AL = proposals.is_masked & is_hot_A[:, None]
        again = propose(
            logits_MV[is_hot_AL[proposals.is_masked]],
            proposals.is_masked[is_hot_A],
            draws.of([rows[number] for number in hot]),
            temperature=self._config.temperature + max(increases),
            top_p=self._config.top_p,
            uncertain_token_ids=self._stop_token_ids[:0],
        )
        token_ids_AL = proposals.token_ids.clone()
        token_ids_AL[is_hot_A] = again.token_ids
        return Proposals(token_ids_AL, proposals.is_masked, proposals.logits)

    def committed(self, rows: list[int], block: slice, token_ids_AL: Tensor, is_committed_AL: Tensor) -> dict[int, int]:
        """A step was made. The thoughts it has closed by a raised token: the column, by the batch's row. What stands
        behind it was written for a thought that was to go on, and is to be cleared."""
        if self._loops is not None:
            self._loops.committed(rows, block, is_committed_AL)
        if self._thinking is None:
            return {}
        return self._thinking.committed(rows, block, token_ids_AL, is_committed_AL)

    def remasked(self, token_ids_BT: Tensor, block: slice, rows: list[int]) -> Tensor | None:
        """A block is finished. (B, T) bool: the looped tokens that have become [M] again, in place; None: there are
        none."""
        if self._loops is None:
            return None
        is_due_BT = torch.zeros_like(token_ids_BT, dtype=torch.bool)
        for row in self._going_on(token_ids_BT, block, rows):
            is_due_T = self._loops.look(token_ids_BT, block, row, self._mask_token_id)
            if is_due_T is not None:
                is_due_BT[row] = is_due_T
        return is_due_BT if is_due_BT.any() else None

    def finished(self, token_ids_BT: Tensor, block: slice, rows: list[int]) -> None:
        """A block is finished, and stays: whoever need think no more will stop in the next."""
        if self._trials is None or self._thinking is None:
            return
        rows = self._going_on(token_ids_BT, block, rows)
        token_ids_AT = token_ids_BT[rows]
        ends_A = torch.full((len(rows),), block.stop, device=token_ids_BT.device)
        is_open_A = self._thinking.is_open(token_ids_AT, ends_A)
        thinking = [row for row, is_open in zip(rows, is_open_A.tolist(), strict=True) if is_open]
        for row in self._trials.settled(token_ids_AT[is_open_A], thinking, block):
            self._thinking.end_soon(row)

    def events_of(self, row: int, new_ids: list[int]) -> RowEvents:
        """What happened to the row whose text, without the stop token, has become this."""
        alarms = () if self._loops is None else self._loops.alarms(row)
        if self._thinking is not None:
            return RowEvents(self._thinking.end_of(row, new_ids), alarms)
        is_closed = self._kinds.think_close_id in new_ids
        return RowEvents(ThinkingEnd.natural if is_closed else ThinkingEnd.none, alarms)

    def _going_on(self, token_ids_BT: Tensor, block: slice, rows: list[int]) -> list[int]:
        """Those of the rows whose text has not stopped."""
        new_ids_AN = token_ids_BT[rows, self._prompt_length : block.stop]
        is_stopped_A = torch.isin(new_ids_AN, self._stop_token_ids).any(-1)
        return [row for row, is_stopped in zip(rows, is_stopped_A.tolist(), strict=True) if not is_stopped]

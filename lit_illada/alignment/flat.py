"""Reports rollouts whose rewards give no gradient.

Shapes: P prompts, G completions of each.
"""

import logging
from typing import Any

import torch
from torch import Tensor

from lit_illada.alignment.advantages import is_mixed
from lit_illada.errors import UserError

log = logging.getLogger(__name__)

_MOST = 10  # such rollouts in a row
_ADVICE = (
    "choose easier or harder problems (task, problems.difficulties), a reward with partial credit "
    "(alignment.reward.terms), or raise alignment.group_size, prompts_per_step or generation.temperature"
)


class FlatRollouts:
    """Counts consecutive rollouts in which no group has unequal rewards, which are called flat.

    num: their number. was_mixed: whether a rollout of the run was not flat.
    """

    def __init__(self) -> None:
        self.num = 0
        self.was_mixed = False

    def observe(self, reward_PG: Tensor, correct_PG: Tensor | None, step: int, is_logged: bool) -> None:
        """Count a rollout of all ranks. Raises UserError where the first ten of the run are flat.

        Warns of
        - a first rollout that is flat,
        - a first rollout that is not, but in which all verdicts of every group are equal,
        - ten flat rollouts in a row of a run that has learnt, and may have learnt everything.

        correct_PG: the reward `correct`, NaN where it failed; None: it has no weight.
        """
        is_first = not self.was_mixed and self.num == 0
        if is_mixed(reward_PG).any():
            self.num, self.was_mixed = 0, True
            if is_first and is_logged and correct_PG is not None and not _has_mixed_or_failed(correct_PG):
                log.warning(
                    "step %d: all %d completions have %s, so only the other rewards give a gradient: %s",
                    step, correct_PG.numel(), _described(correct_PG, "reward_correct"), _ADVICE,
                )  # fmt: skip
            return
        self.num += 1
        message = (
            f"step {step}: all {reward_PG.numel()} completions have {_described(reward_PG, 'reward')}, so the rewards "
            f"give no gradient: {_ADVICE}"
        )
        in_a_row = f"{_MOST} rollouts in a row were without effect. {message[0].upper()}{message[1:]}"
        if self.num >= _MOST and not self.was_mixed:
            raise UserError(in_a_row)
        if is_logged and (is_first or self.num == _MOST):
            log.warning("%s", message if is_first else in_a_row)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, equal on all ranks."""
        return {"num": self.num, "was_mixed": self.was_mixed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counts."""
        self.num, self.was_mixed = state["num"], state["was_mixed"]


def _has_mixed_or_failed(values_PG: Tensor) -> bool:
    return bool(is_mixed(values_PG).any() or values_PG.isnan().any())


def _described(values_PG: Tensor, name: str) -> str:
    first = values_PG[0, 0]
    is_same = torch.equal(values_PG, first.expand_as(values_PG))
    return f"{name} {first:g}" if is_same else f"equal {name} within every group"

"""Reports rollouts whose rewards give no gradient."""

import logging

from torch import Tensor

from lit_illada.errors import UserError

log = logging.getLogger(__name__)

_MOST = 10  # such rollouts in a row


class FlatRollouts:
    """Counts consecutive rollouts in which no group has unequal rewards.

    num: their number; saved in checkpoints.
    """

    def __init__(self) -> None:
        self.num = 0

    def observe(self, flat_groups: float, reward: Tensor, step: int, is_logged: bool) -> None:
        """Warn of the first such rollout. Raises UserError after ten in a row.

        flat_groups: fraction of groups with equal rewards. reward: (S,) of all ranks.
        """
        if flat_groups < 1:
            self.num = 0
            return
        self.num += 1
        same = f"reward {reward[0]:g}" if bool((reward == reward[0]).all()) else "equal rewards within every group"
        message = (
            f"step {step}: all {len(reward)} completions have {same}, so the rewards give no gradient: choose "
            "easier or harder problems (task, problems.difficulties), a reward with partial credit "
            "(alignment.reward.terms), or raise alignment.group_size, prompts_per_step or generation.temperature"
        )
        if self.num >= _MOST:
            raise UserError(f"{_MOST} rollouts in a row were without effect. {message[0].upper()}{message[1:]}")
        if is_logged and self.num == 1:
            log.warning("%s", message)

"""When has a model thought enough? When the answer it would give now is as certain as it was a while ago.

EAT (arXiv 2509.26522): the thought so far is closed on trial and the entropy of what would follow is measured; its
exponential moving mean M and variance V are followed, and thinking ends when V is small. Here a trial is made after
every block, and the entropy is the mean over the first masked tokens of the answer. Shapes: A rows, T tokens so far,
M masked tokens in row-major order, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lit_illada.errors import UserError
from lit_illada.runtime.lazy import Tensor, torch


@dataclass(frozen=True)
class NoExit:
    """A thought may go on to the end of the budget."""

    @property
    def is_on(self) -> bool:
        return False


@dataclass(frozen=True)
class Settled:
    """Thinking ends when V < threshold, nats², after at least `min_trials` trials.

    M ← (1 − α) M + α H, V ← (1 − α) V + α (H − M)², M begun with the first trial's H, V with 0 and corrected for it by
    1 / (1 − (1 − α)ⁿ), n of its n + 1 trials. smoothing: α. answer_tokens: masked tokens behind the trial's close.
    """

    threshold: float = 0.01
    smoothing: float = 0.2
    min_trials: int = 4
    answer_tokens: int = 4

    def __post_init__(self) -> None:
        _require(self.threshold > 0, "threshold", self.threshold, "above 0")
        _require(0 < self.smoothing <= 1, "smoothing", self.smoothing, "above 0 and at most 1")
        _require(self.min_trials >= 2, "min_trials", self.min_trials, "2 or more")
        _require(self.answer_tokens >= 1, "answer_tokens", self.answer_tokens, "1 or more")

    @property
    def is_on(self) -> bool:
        return True


EarlyExit = NoExit | Settled
EARLY_EXITS: dict[str, type] = {"none": NoExit, "settled": Settled}


@dataclass
class Spread:
    """The moving mean and variance of one row's entropies."""

    mean: float = 0.0
    variance: float = 0.0
    num_trials: int = 0

    def add(self, entropy: float, rule: Settled) -> bool:
        """Whether the entropies have settled."""
        self.num_trials += 1
        if self.num_trials == 1:
            self.mean = entropy
            return False
        keep = 1 - rule.smoothing
        self.mean = keep * self.mean + rule.smoothing * entropy
        self.variance = keep * self.variance + rule.smoothing * (entropy - self.mean) ** 2
        corrected = self.variance / (1 - keep ** (self.num_trials - 1))
        return self.num_trials >= rule.min_trials and corrected < rule.threshold


class Trials:
    """Tries answers after finished blocks, and remembers how certain each row was."""

    def __init__(
        self,
        rule: Settled,
        read: Callable[[Tensor, Tensor, list[int], slice], Tensor],
        *,
        close_id: int,
        mask_token_id: int,
        num_columns: int,
        num_rows: int,
    ) -> None:
        """read: logits (M, V) of the masked tokens of a block of some rows. num_columns: of the longest text."""
        self._rule = rule
        self._read = read
        self._close_id = close_id
        self._mask_token_id = mask_token_id
        self._num_columns = num_columns
        self._spreads = [Spread() for _ in range(num_rows)]

    def settled(self, token_ids_AT: Tensor, rows: Sequence[int], block: slice) -> list[int]:
        """Those of the batch's `rows`, as their blocks have just been finished, that need think no more."""
        answer = slice(block.stop + 1, block.stop + 1 + self._rule.answer_tokens)
        if not rows or answer.stop > self._num_columns:
            return []
        room = max(0, answer.stop - token_ids_AT.shape[1])
        tried_AT = torch.nn.functional.pad(token_ids_AT, (0, room), value=self._mask_token_id)
        tried_AT[:, block.stop] = self._close_id
        tried_AT[:, answer] = self._mask_token_id
        is_masked_AL = torch.ones(len(rows), self._rule.answer_tokens, dtype=torch.bool, device=tried_AT.device)
        logits_MV = self._read(tried_AT, is_masked_AL, list(rows), answer).double()
        logits_MV[:, self._mask_token_id] = -torch.inf
        log_p_MV = logits_MV.log_softmax(-1)
        entropy_M = -(log_p_MV.exp() * log_p_MV).nan_to_num(0.0).sum(-1)
        entropy_A = entropy_M.view(len(rows), -1).mean(-1).tolist()
        return [
            row for row, entropy in zip(rows, entropy_A, strict=True) if self._spreads[row].add(entropy, self._rule)
        ]


def _require(is_right: bool, name: str, value: float, allowed: str) -> None:
    if not is_right:
        raise UserError(f"generation.early_exit.{name} is {value}: it must be {allowed}")

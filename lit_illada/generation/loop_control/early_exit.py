"""Early exit from reasoning segments once the entropy of the answer has settled.

Source: EAT, arXiv 2509.26522. A trial closes the reasoning segment tentatively and measures the entropy of the answer
that would follow. The exponential moving mean M and variance V of these entropies are tracked; the segment is closed
when V is small. Here a trial follows every block, and the entropy is averaged over the first masked tokens of the
answer. Shapes: A rows, T tokens so far, M masked positions in row-major order, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lit_illada.errors import require
from lit_illada.runtime.lazy import Tensor, torch


@dataclass(frozen=True)
class NoExit:
    """Reasoning segments may continue to the end of the budget."""

    @property
    def is_on(self) -> bool:
        return False


@dataclass(frozen=True)
class Settled:
    """Closes the reasoning segment when the variance of the answer's entropy is below a threshold.

    M ← (1 − α) M + α H and V ← (1 − α) V + α (H − M)² with α = `smoothing`. M starts at the first trial's H; V starts
    at 0 and is corrected for that by 1 / (1 − (1 − α)ⁿ) after n + 1 trials.
    """

    threshold: float = 0.01
    """Variance V below which the segment is closed, nats²."""
    smoothing: float = 0.2
    """Weight α of the newest trial, in (0, 1]."""
    min_trials: int = 4
    """Trials before the segment may be closed."""
    answer_tokens: int = 4
    """Masked tokens of the answer whose entropy a trial averages."""

    def __post_init__(self) -> None:
        require(self.threshold > 0, "generation.early_exit.threshold", self.threshold, "above 0")
        require(0 < self.smoothing <= 1, "generation.early_exit.smoothing", self.smoothing, "above 0 and at most 1")
        require(self.min_trials >= 2, "generation.early_exit.min_trials", self.min_trials, "2 or more")
        require(self.answer_tokens >= 1, "generation.early_exit.answer_tokens", self.answer_tokens, "1 or more")

    @property
    def is_on(self) -> bool:
        return True


EarlyExit = NoExit | Settled
EARLY_EXITS: dict[str, type] = {"none": NoExit, "settled": Settled}


@dataclass
class Spread:
    """Moving mean and variance of the entropies of one row."""

    mean: float = 0.0
    variance: float = 0.0
    num_trials: int = 0

    def add(self, entropy: float, rule: Settled) -> bool:
        """Adds a trial; returns whether the entropies have settled."""
        self.num_trials += 1
        if self.num_trials == 1:
            self.mean = entropy
            return False
        decay = 1 - rule.smoothing
        self.mean = decay * self.mean + rule.smoothing * entropy
        self.variance = decay * self.variance + rule.smoothing * (entropy - self.mean) ** 2
        corrected = self.variance / (1 - decay ** (self.num_trials - 1))
        return self.num_trials >= rule.min_trials and corrected < rule.threshold


class Trials:
    """Runs trials after finished blocks and tracks the entropies of each row."""

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
        """read: computes logits (M, V) of the masked positions of a block. num_columns: of prompt and longest text."""
        self._rule = rule
        self._read = read
        self._close_id = close_id
        self._mask_token_id = mask_token_id
        self._num_columns = num_columns
        self._spreads = [Spread() for _ in range(num_rows)]

    def settled(self, token_ids_AT: Tensor, rows: Sequence[int], block: slice) -> list[int]:
        """The rows, out of `rows` whose block has just been finished, whose answer has settled."""
        answer = slice(block.stop + 1, block.stop + 1 + self._rule.answer_tokens)
        if not rows or answer.stop > self._num_columns:
            return []
        missing = max(0, answer.stop - token_ids_AT.shape[1])
        tried_AT = torch.nn.functional.pad(token_ids_AT, (0, missing), value=self._mask_token_id)
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

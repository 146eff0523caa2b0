"""Commit rules and schedules: which masked positions of a block become final in a denoising step, and how many.

Rules that rank positions take the number of commits from a schedule; the others decide by a test of each position.
Shapes: B rows, L tokens per block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from lit_illada.errors import UserError, require
from lit_illada.runtime.lazy import Tensor, torch

if TYPE_CHECKING:
    from lit_illada.generation.draws import RowDraws
    from lit_illada.generation.proposals import Proposals


class CommitRule(Protocol):
    """Selects the positions whose proposed tokens become final in this step."""

    counts: ClassVar[bool]
    """Whether the rule ranks positions and takes their number from the commit schedule; otherwise it commits every
    position that passes its test, and at least one."""

    def __call__(
        self, proposals: Proposals, steps_left: int, draws: RowDraws, num_commits_B: Tensor | None = None
    ) -> Tensor:
        """(B, L) bool, true at masked positions only; with one step left, at all of them.

        steps_left: denoising steps left in this block, including this one. num_commits_B: (B,) int64, positions to
        commit if the rule counts; None: an even number in each remaining step.
        """
        ...


@dataclass(frozen=True)
class LowConfidence:
    """Commits the most confident proposals and leaves the low-confidence ones masked, LLaDA's "low-confidence
    remasking" (arXiv 2502.09992, algorithm 5)."""

    counts: ClassVar[bool] = True

    def __call__(
        self, proposals: Proposals, steps_left: int, draws: RowDraws, num_commits_B: Tensor | None = None
    ) -> Tensor:
        return _highest(proposals.confidence, proposals.is_masked, steps_left, num_commits_B)


@dataclass(frozen=True)
class Random:
    """Commits positions drawn at random, LLaDA's "random remasking" (arXiv 2502.09992, algorithm 4)."""

    counts: ClassVar[bool] = True

    def __call__(
        self, proposals: Proposals, steps_left: int, draws: RowDraws, num_commits_B: Tensor | None = None
    ) -> Tensor:
        noise_BL = draws.uniform(proposals.is_masked.shape[1])
        return _highest(noise_BL, proposals.is_masked, steps_left, num_commits_B)


@dataclass(frozen=True)
class Margin:
    """Commits the proposals with the largest probability margin over the runner-up (arXiv 2502.06768)."""

    counts: ClassVar[bool] = True

    def __call__(
        self, proposals: Proposals, steps_left: int, draws: RowDraws, num_commits_B: Tensor | None = None
    ) -> Tensor:
        return _highest(proposals.margin, proposals.is_masked, steps_left, num_commits_B)


@dataclass(frozen=True)
class Entropy:
    """Commits the positions of lowest predictive entropy (Dream, arXiv 2508.15487)."""

    counts: ClassVar[bool] = True

    def __call__(
        self, proposals: Proposals, steps_left: int, draws: RowDraws, num_commits_B: Tensor | None = None
    ) -> Tensor:
        return _highest(-proposals.entropy, proposals.is_masked, steps_left, num_commits_B)


@dataclass(frozen=True)
class Threshold:
    """Commits every proposal whose confidence reaches the threshold, and always the most confident one (Fast-dLLM,
    arXiv 2505.22618)."""

    counts: ClassVar[bool] = False
    threshold: float = 0.9
    """Probability from which a proposal is committed, in (0, 1]."""

    def __post_init__(self) -> None:
        require(0 < self.threshold <= 1, "generation.commit_rule.threshold", self.threshold, "above 0 and at most 1")

    def __call__(
        self, proposals: Proposals, steps_left: int, draws: RowDraws, num_commits_B: Tensor | None = None
    ) -> Tensor:
        is_sure_BL = proposals.confidence >= self.threshold
        return _sure_or_first(is_sure_BL, proposals.confidence, proposals.is_masked, steps_left)


@dataclass(frozen=True)
class Factor:
    """Commits the n most confident proposals for the largest n with (i + 1)(1 − c⁽ⁱ⁾) < factor for all i ≤ n, where
    c⁽ⁱ⁾ is the i-th highest confidence (Fast-dLLM, arXiv 2505.22618, section 3.3)."""

    counts: ClassVar[bool] = False
    factor: float = 1.0
    """Bound on (i + 1)(1 − c⁽ⁱ⁾); larger values commit more tokens per step."""

    def __post_init__(self) -> None:
        require(self.factor > 0, "generation.commit_rule.factor", self.factor, "above 0")

    def __call__(
        self, proposals: Proposals, steps_left: int, draws: RowDraws, num_commits_B: Tensor | None = None
    ) -> Tensor:
        sorted_BL, order_BL = _sorted(proposals.confidence, proposals.is_masked)
        number_L = torch.arange(1, sorted_BL.shape[1] + 1, device=sorted_BL.device)
        is_sure_BL = ((number_L + 1) * (1 - sorted_BL) < self.factor).cummin(-1).values
        is_sure_BL = torch.zeros_like(is_sure_BL).scatter(1, order_BL, is_sure_BL)
        return _sure_or_first(is_sure_BL, proposals.confidence, proposals.is_masked, steps_left)


@dataclass(frozen=True)
class EntropyBound:
    """Commits positions in increasing order of entropy while the entropies of those before sum to at most the bound.

    The sum bounds the mutual information of the tokens committed together (EB-Sampler, arXiv 2505.24857).
    """

    counts: ClassVar[bool] = False
    bound: float = 0.1
    """Largest sum of entropies, nats."""

    def __post_init__(self) -> None:
        require(self.bound >= 0, "generation.commit_rule.bound", self.bound, "0 or more")

    def __call__(
        self, proposals: Proposals, steps_left: int, draws: RowDraws, num_commits_B: Tensor | None = None
    ) -> Tensor:
        certainty_BL = -proposals.entropy
        sorted_BL, order_BL = _sorted(certainty_BL, proposals.is_masked)
        entropy_BL = -sorted_BL
        before_BL = torch.nn.functional.pad(entropy_BL.cumsum(-1)[:, :-1], (1, 0))
        is_sure_BL = torch.zeros_like(proposals.is_masked).scatter(1, order_BL, before_BL <= self.bound)
        return _sure_or_first(is_sure_BL, certainty_BL, proposals.is_masked, steps_left)


COMMIT_RULES: dict[str, type] = {
    "random": Random,
    "low_confidence": LowConfidence,
    "margin": Margin,
    "entropy": Entropy,
    "threshold": Threshold,
    "factor": Factor,
    "entropy_bound": EntropyBound,
}


class CommitSchedule(Protocol):
    """Number of tokens that each step commits."""

    def __call__(self, num_masked_B: Tensor, steps_left: int, num_steps: int) -> Tensor:
        """(B,) int64, between 0 and `num_masked_B`; with one step left, `num_masked_B` itself.

        num_masked_B: (B,) int64, masked tokens of the block. steps_left: denoising steps left, including this one.
        """
        ...


@dataclass(frozen=True)
class Even:
    """⌈n / steps left⌉ of the n masked tokens: equal numbers, where they do not divide the larger ones first (LLaDA,
    arXiv 2502.09992)."""

    def __call__(self, num_masked_B: Tensor, steps_left: int, num_steps: int) -> Tensor:
        return -(-num_masked_B // steps_left)


@dataclass(frozen=True)
class DreamSchedule:
    """⌊n·(1 − s/t)⌋ of the n masked tokens, where t and s are the times of this step and the next on a linear grid
    from 1 to epsilon; all of them in the last step. A step may commit nothing. Source: Dream, arXiv 2508.15487.

    The grid and the product are float32, as in the published code: rounding decides where the product is an integer.
    """

    epsilon: float = 1e-3
    """Time at which the grid ends, in (0, 1)."""

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise UserError(
                f"generation.commit_schedule, epsilon is {self.epsilon}: it must be above 0 and below 1, such as 0.001"
            )

    def __call__(self, num_masked_B: Tensor, steps_left: int, num_steps: int) -> Tensor:
        if steps_left == 1:
            return num_masked_B
        # on the CPU, because other devices may round differently
        times = torch.linspace(1, self.epsilon, num_steps + 1, dtype=torch.float32)
        step = num_steps - steps_left
        product_B = num_masked_B.cpu().float() * (1 - times[step + 1] / times[step])
        return product_B.long().to(num_masked_B.device)


COMMIT_SCHEDULES: dict[str, type] = {"even": Even, "dream": DreamSchedule}


def _highest(score_BL: Tensor, is_masked_BL: Tensor, steps_left: int, num_commits_B: Tensor | None) -> Tensor:
    """The positions with the highest scores; of equal scores the leftmost."""
    if num_commits_B is None:
        num_commits_B = Even()(is_masked_BL.sum(-1), steps_left, steps_left)
    return (_rank(score_BL, is_masked_BL) < num_commits_B[:, None]) & is_masked_BL


def _sure_or_first(is_sure_BL: Tensor, score_BL: Tensor, is_masked_BL: Tensor, steps_left: int) -> Tensor:
    """The positions that pass the test, at least the best one; all of them in the last step."""
    if steps_left == 1:
        return is_masked_BL.clone()
    return (is_sure_BL | (_rank(score_BL, is_masked_BL) == 0)) & is_masked_BL


def _sorted(score_BL: Tensor, is_masked_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Scores in decreasing order and their positions; unmasked positions come last, with −∞."""
    return score_BL.masked_fill(~is_masked_BL, -torch.inf).sort(dim=-1, descending=True, stable=True)


def _rank(score_BL: Tensor, is_masked_BL: Tensor) -> Tensor:
    """(B, L) int64: rank of each position, 0 for the highest score."""
    return _sorted(score_BL, is_masked_BL)[1].argsort(dim=-1)

"""Commit rules: which of a block's masked positions become final in a denoising step.

Shapes: B rows, L tokens a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from lit_illada.errors import UserError
from lit_illada.generation.commit_schedule import Even
from lit_illada.runtime.lazy import Tensor, torch

if TYPE_CHECKING:
    from lit_illada.generation.draws import RowDraws
    from lit_illada.generation.proposals import Proposals


class CommitRule(Protocol):
    """Selects the positions whose proposed tokens become final in this step.

    counts: whether the rule ranks positions and commits as many as the commit schedule says; otherwise it commits every
    position that passes a test of its own, and at least one.
    """

    counts: ClassVar[bool]

    def __call__(
        self, proposals: Proposals, steps_left: int, draws: RowDraws, num_commits_B: Tensor | None = None
    ) -> Tensor:
        """(B, L) bool, true at masked positions only; with one step left, at all of them.

        steps_left: denoising steps left in this block, this one included. num_commits_B: (B,) int64, positions to
        commit by a rule that counts; None: an even number in each of the steps left.
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
    """Commits where the proposal leads the runner-up by most (arXiv 2502.06768)."""

    counts: ClassVar[bool] = True

    def __call__(
        self, proposals: Proposals, steps_left: int, draws: RowDraws, num_commits_B: Tensor | None = None
    ) -> Tensor:
        return _highest(proposals.margin, proposals.is_masked, steps_left, num_commits_B)


@dataclass(frozen=True)
class Entropy:
    """Commits where the model's distribution has the lowest entropy (Dream, arXiv 2508.15487)."""

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

    def __post_init__(self) -> None:
        _require(0 < self.threshold <= 1, "threshold.threshold", self.threshold, "above 0 and at most 1")

    def __call__(
        self, proposals: Proposals, steps_left: int, draws: RowDraws, num_commits_B: Tensor | None = None
    ) -> Tensor:
        is_sure_BL = proposals.confidence >= self.threshold
        return _sure_or_first(is_sure_BL, proposals.confidence, proposals.is_masked, steps_left)


@dataclass(frozen=True)
class Factor:
    """Commits the n most confident proposals for the largest n such that (i + 1)(1 − c⁽ⁱ⁾) < factor for the i-th of
    each of them, i ≤ n (Fast-dLLM, arXiv 2505.22618, section 3.3)."""

    counts: ClassVar[bool] = False
    factor: float = 1.0

    def __post_init__(self) -> None:
        _require(self.factor > 0, "factor.factor", self.factor, "above 0")

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
    """Commits in the order of entropy while the entropies before the token add up to at most the bound, nats: a bound
    on what the tokens may tell of each other (EB-Sampler, arXiv 2505.24857; DiffusionGemma)."""

    counts: ClassVar[bool] = False
    bound: float = 0.1

    def __post_init__(self) -> None:
        _require(self.bound >= 0, "entropy_bound.bound", self.bound, "0 or more")

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


def _highest(score_BL: Tensor, is_masked_BL: Tensor, steps_left: int, num_commits_B: Tensor | None) -> Tensor:
    """The positions with the highest scores; ties go to the earlier token."""
    if num_commits_B is None:
        num_commits_B = Even()(is_masked_BL.sum(-1), steps_left, steps_left)
    return (_rank(score_BL, is_masked_BL) < num_commits_B[:, None]) & is_masked_BL


def _sure_or_first(is_sure_BL: Tensor, score_BL: Tensor, is_masked_BL: Tensor, steps_left: int) -> Tensor:
    if steps_left == 1:
        return is_masked_BL.clone()
    return (is_sure_BL | (_rank(score_BL, is_masked_BL) == 0)) & is_masked_BL


def _sorted(score_BL: Tensor, is_masked_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The scores from the highest down, and whose they are; unmasked positions come last, with −∞."""
    return score_BL.masked_fill(~is_masked_BL, -torch.inf).sort(dim=-1, descending=True, stable=True)


def _rank(score_BL: Tensor, is_masked_BL: Tensor) -> Tensor:
    return _sorted(score_BL, is_masked_BL)[1].argsort(dim=-1)


def _require(is_right: bool, name: str, value: float, allowed: str) -> None:
    if not is_right:
        raise UserError(f"generation.commit_rule, {name} is {value}: it must be {allowed}")

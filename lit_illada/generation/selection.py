"""Which of a block's masked positions are committed in a denoising step?

Shapes: B rows, L tokens a block.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class CommitRule(Protocol):
    """Names the positions whose proposed tokens become final in this step."""

    def __call__(self, confidence_BL: Tensor, is_masked_BL: Tensor, steps_left: int) -> Tensor:
        """(B, L) bool, true at masked positions only; with one step left, at all of them.

        confidence_BL: the proposed token's probability, in any float dtype; its values at unmasked positions are
        ignored. steps_left: denoising steps left in this block, this one included.
        """
        ...


@dataclass(frozen=True)
class LowConfidence:
    """Commits the most confident proposals and leaves the low-confidence ones masked, LLaDA's "low-confidence
    remasking" (arXiv 2502.09992, algorithm 5). Commits are spread evenly over the steps, the larger shares first."""

    def __call__(self, confidence_BL: Tensor, is_masked_BL: Tensor, steps_left: int) -> Tensor:
        num_commits_B = -(-is_masked_BL.sum(-1, keepdim=True) // steps_left)
        order_BL = confidence_BL.masked_fill(~is_masked_BL, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        rank_BL = order_BL.argsort(dim=-1)
        return (rank_BL < num_commits_B) & is_masked_BL


COMMIT_RULES: dict[str, type] = {"low_confidence": LowConfidence}

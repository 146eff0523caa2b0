"""Commit schedules: how many masked tokens of a block a denoising step commits.

Commit rules that rank positions (`CommitRule.counts`) take the number from here. Shapes: B rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from lit_illada.errors import UserError
from lit_illada.runtime.lazy import Tensor, torch


class CommitSchedule(Protocol):
    """Number of commits per step."""

    def __call__(self, num_masked_B: Tensor, steps_left: int, num_steps: int) -> Tensor:
        """(B,) int64, between 0 and `num_masked_B`; with one step left, `num_masked_B` itself.

        num_masked_B: (B,) int64, masked tokens of the block. steps_left: denoising steps left, this one included.
        """
        ...


@dataclass(frozen=True)
class Even:
    """⌈n / steps left⌉ of the n masked tokens: the same number in every step, the larger ones first. LLaDA,
    arXiv 2502.09992."""

    def __call__(self, num_masked_B: Tensor, steps_left: int, num_steps: int) -> Tensor:
        return -(-num_masked_B // steps_left)


@dataclass(frozen=True)
class DreamSchedule:
    """⌊n·(1 − s/t)⌋ of the n masked tokens, where t and s are this step's and the next one's time on a linear grid from
    1 to epsilon; all of them in the last step. A step may commit nothing. Dream, arXiv 2508.15487, published sampler.

    The grid and the product are float32, as in the published code: rounding decides where the product is an integer.
    """

    epsilon: float = 1e-3  # time at which the grid ends

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise UserError(
                f"generation.commit_schedule, epsilon is {self.epsilon}: it must be above 0 and below 1, such as 0.001"
            )

    def __call__(self, num_masked_B: Tensor, steps_left: int, num_steps: int) -> Tensor:
        if steps_left == 1:
            return num_masked_B
        # on the CPU: a device's own arithmetic may round otherwise
        times = torch.linspace(1, self.epsilon, num_steps + 1, dtype=torch.float32)
        step = num_steps - steps_left
        product_B = num_masked_B.cpu().float() * (1 - times[step + 1] / times[step])
        return product_B.long().to(num_masked_B.device)


COMMIT_SCHEDULES: dict[str, type] = {"even": Even, "dream": DreamSchedule}

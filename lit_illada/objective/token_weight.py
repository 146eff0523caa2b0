"""Token weights a_i: the factor on the cross-entropy of each masked token.

To add one, write a frozen dataclass, a row in `TOKEN_WEIGHTS` and a YAML file; the tests cover it through the table.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lit_illada.errors import UserError
from lit_illada.objective.blocks import is_block_start, offsets
from lit_illada.runtime.lazy import Tensor, torch

if TYPE_CHECKING:
    from lit_illada.batch import Layout


@dataclass(frozen=True)
class TokenWeight(ABC):
    """A function of the losses and masks of a batch."""

    @abstractmethod
    def __call__(self, nll_BT: Tensor, is_masked_BT: Tensor, layout: Layout) -> Tensor:
        """(B, T) float32 weights, of which those of masked tokens are used.

        nll_BT: cross-entropy in nats, 0 at unmasked tokens. is_masked_BT: bool. layout: segments of the rows.
        """


@dataclass(frozen=True)
class Equal(TokenWeight):
    """1 for all tokens."""

    def __call__(self, nll_BT: Tensor, is_masked_BT: Tensor, layout: Layout) -> Tensor:
        return torch.ones_like(nll_BT)


@dataclass(frozen=True)
class Cart(TokenWeight):
    """a_n = ½ Σ_i p(1 − p)^{|n − i| − 1} over the visible tokens i of the segment of n. Dream, arXiv 2508.15487.

    Tokens near visible ones get more weight. The sum ends at the borders of the segment, as attention does. Visible
    prompt tokens are included. With blocks, the visible tokens are those of earlier blocks and of the token's own.
    """

    p: float = 0.3
    """Parameter of the geometric distribution over distances, in (0, 1); larger: only close neighbours matter."""

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise UserError(f"objective.token_weight.p is {self.p}: it must be 0 < p < 1")

    def __call__(self, nll_BT: Tensor, is_masked_BT: Tensor, layout: Layout) -> Tensor:
        is_visible_BT = (~is_masked_BT).to(nll_BT.dtype)
        if layout.blocks is not None:
            return self._in_blocks(is_visible_BT, layout, layout.blocks)
        before_BT = self._decayed_sum_before(is_visible_BT, layout.position_ids, layout.max_seqlen)
        after_BT = self._decayed_sum_before(is_visible_BT.flip(1), _tokens_after(layout).flip(1), layout.max_seqlen)
        return 0.5 * self.p * (before_BT + after_BT.flip(1))

    def _in_blocks(self, is_visible_BT: Tensor, layout: Layout, blocks_BT: Tensor) -> Tensor:
        is_first_BT = is_block_start(blocks_BT)
        is_last_BT = torch.nn.functional.pad(is_first_BT[:, 1:], (0, 1), value=True)
        longest = layout.max_seqlen
        # of the tokens before the block all are visible: those of the segment without the block's own masked ones
        is_hidden_BT = 1 - is_visible_BT
        before_BT = self._decayed_sum_before(torch.ones_like(is_hidden_BT), layout.position_ids, longest)
        before_BT = before_BT - self._decayed_sum_before(is_hidden_BT, offsets(is_first_BT), longest)
        after_BT = self._decayed_sum_before(is_visible_BT.flip(1), offsets(is_last_BT.flip(1)), longest)
        return 0.5 * self.p * (before_BT + after_BT.flip(1))

    def _decayed_sum_before(self, values_BT: Tensor, position_BT: Tensor, max_seqlen: int) -> Tensor:
        """y_n = Σ_{i<n} (1 − p)^{n−i−1} x_i within the segment, in log2(max_seqlen) steps (a parallel prefix sum)."""
        sum_BT = _shifted(values_BT, 1) * (position_BT >= 1)
        window = 1
        # sum_BT holds the sums over the last `window` tokens; adding the one shifted by `window` doubles the window
        while window < max_seqlen:
            sum_BT = sum_BT + (1 - self.p) ** window * _shifted(sum_BT, window) * (position_BT >= window)
            window *= 2
        return sum_BT


@dataclass(frozen=True)
class Focal(TokenWeight):
    """α(1 − e^{−CE})^γ: less weight of tokens predicted well. The α-balanced focal loss of arXiv 1708.02002.

    As in the paper, the gradient flows through the weight too.
    """

    alpha: float = 1.0
    """Factor on all weights."""
    gamma: float = 2.0
    """Focusing exponent; larger: less weight of tokens predicted well."""

    def __post_init__(self) -> None:
        if self.alpha <= 0 or self.gamma < 1:
            seen = f"alpha is {self.alpha}, gamma is {self.gamma}"
            raise UserError(f"objective.token_weight: {seen}: alpha must be above 0, gamma at least 1")

    def __call__(self, nll_BT: Tensor, is_masked_BT: Tensor, layout: Layout) -> Tensor:
        return self.alpha * (-torch.expm1(-nll_BT)) ** self.gamma


TOKEN_WEIGHTS: dict[str, type[TokenWeight]] = {"none": Equal, "cart": Cart, "focal": Focal}


def _shifted(values_BT: Tensor, offset: int) -> Tensor:
    """The values moved to the right within the rows, zeros on the left."""
    return torch.nn.functional.pad(values_BT, (offset, 0))[:, : values_BT.shape[1]]


def _tokens_after(layout: Layout) -> Tensor:
    """(B, T) int64: number of tokens of the same segment after each token."""
    segment_BT = layout.segment_ids() - 1
    index_BT = torch.arange(segment_BT.numel(), device=segment_BT.device).view_as(segment_BT)
    return layout.cu_seqlens[1:].long()[segment_BT] - 1 - index_BT

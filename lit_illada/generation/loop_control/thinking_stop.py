"""Rules that close long reasoning segments by making the closing token more probable, or certain.

iLLaDA (arXiv 2606.25331) raises the probability of the closing token as the text grows; the formula is not published.
The three ramps here are candidates for it, and the hard stop is their baseline. Notation: g new tokens before the
position, g₀ = `start_tokens`, G the budget of the segment, u = max(0, (g − g₀) / (G − g₀)).
Shapes: R rows, one position in each, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from lit_illada.errors import UserError, require
from lit_illada.runtime.lazy import Tensor, torch

_MAX_INCREASE = 1e6  # of a logit; a token is certain long before that


class ThinkingStop(Protocol):
    """Changes the logits at one position of each row with an open reasoning segment."""

    @property
    def is_on(self) -> bool:
        """Whether the rule ever changes logits."""
        ...

    def check(self, max_new_tokens: int) -> None:
        """Raises UserError if segment and answer do not fit into `max_new_tokens`."""
        ...

    def cut(self, max_new_tokens: int) -> int | None:
        """Number of new tokens after which a block must end; None: no such limit."""
        ...

    def acts_on(self, num_tokens_R: Tensor, max_new_tokens: int) -> Tensor:
        """(R,) bool: where logits are changed."""
        ...

    def __call__(self, logits_RV: Tensor, num_tokens_R: Tensor, close_id: int, max_new_tokens: int) -> Tensor:
        """Returns the changed logits (R, V). num_tokens_R: g. close_id: the closing token."""
        ...


@dataclass(frozen=True)
class NoThinkingStop:
    """Only the model closes a segment."""

    @property
    def is_on(self) -> bool:
        return False

    def check(self, max_new_tokens: int) -> None:
        return None

    def cut(self, max_new_tokens: int) -> int | None:
        return None

    def acts_on(self, num_tokens_R: Tensor, max_new_tokens: int) -> Tensor:
        return torch.zeros_like(num_tokens_R, dtype=torch.bool)

    def __call__(self, logits_RV: Tensor, num_tokens_R: Tensor, close_id: int, max_new_tokens: int) -> Tensor:
        return logits_RV


@dataclass(frozen=True)
class _Budget:
    thinking_tokens: int | None = None
    """Budget G of the reasoning segment, tokens; None: max_new_tokens − answer_tokens."""
    answer_tokens: int = 32
    """Tokens reserved for the answer."""

    @property
    def is_on(self) -> bool:
        return True

    def budget(self, max_new_tokens: int) -> int:
        """G, tokens."""
        return max_new_tokens - self.answer_tokens if self.thinking_tokens is None else self.thinking_tokens

    def check(self, max_new_tokens: int) -> None:
        require(self.answer_tokens >= 1, "generation.thinking_stop.answer_tokens", self.answer_tokens, "1 or more")
        most = max_new_tokens - self.answer_tokens
        if most < 1:
            raise UserError(
                f"generation.thinking_stop.answer_tokens is {self.answer_tokens}: it must be below "
                f"generation.max_new_tokens, which is {max_new_tokens}"
            )
        if self.thinking_tokens is not None and not 1 <= self.thinking_tokens <= most:
            raise UserError(
                f"generation.thinking_stop.thinking_tokens is {self.thinking_tokens}: it must be 1 … {most}, since "
                f"generation.max_new_tokens is {max_new_tokens} and {self.answer_tokens} tokens are for the answer"
            )

    def cut(self, max_new_tokens: int) -> int | None:
        return None


@dataclass(frozen=True)
class _Ramp(_Budget):
    start_tokens: int = 64
    """New tokens g₀ before the ramp starts."""
    power: float = 1.0
    """Exponent γ of the ramp: 1 is linear in the number of tokens."""

    def check(self, max_new_tokens: int) -> None:
        super().check(max_new_tokens)
        most = self.budget(max_new_tokens) - 1
        require(
            0 <= self.start_tokens <= most,
            "generation.thinking_stop.start_tokens",
            self.start_tokens,
            f"0 … {most}, within the budget of the reasoning segment",
        )
        require(self.power > 0, "generation.thinking_stop.power", self.power, "above 0")

    def acts_on(self, num_tokens_R: Tensor, max_new_tokens: int) -> Tensor:
        return num_tokens_R > self.start_tokens

    def progress(self, num_tokens_R: Tensor, max_new_tokens: int) -> Tensor:
        """u, (R,) float64; above 1 beyond the budget."""
        length = self.budget(max_new_tokens) - self.start_tokens
        return ((num_tokens_R - self.start_tokens).double() / length).clamp(min=0)


@dataclass(frozen=True)
class LinearRamp(_Ramp):
    """ℓ_close += λ · u^γ."""

    scale: float = 10.0
    """λ, added to the logit at the end of the budget."""

    def check(self, max_new_tokens: int) -> None:
        super().check(max_new_tokens)
        require(self.scale > 0, "generation.thinking_stop.scale", self.scale, "above 0")

    def __call__(self, logits_RV: Tensor, num_tokens_R: Tensor, close_id: int, max_new_tokens: int) -> Tensor:
        added_R = self.scale * self.progress(num_tokens_R, max_new_tokens) ** self.power
        return _replace_logit(logits_RV, close_id, logits_RV[:, close_id] + added_R.clamp(max=_MAX_INCREASE))


@dataclass(frozen=True)
class ExponentialRamp:
    """ℓ_close += |ℓ_close| · (factor^(g − g₀) − 1) for g > g₀.

    Hugging Face's ExponentialDecayLengthPenalty, applied to the closing token. It has a start but no budget.
    """

    start_tokens: int = 64
    """New tokens g₀ before the ramp starts."""
    factor: float = 1.01
    """Growth per token, above 1."""

    @property
    def is_on(self) -> bool:
        return True

    def check(self, max_new_tokens: int) -> None:
        most = max_new_tokens - 1
        require(
            0 <= self.start_tokens <= most,
            "generation.thinking_stop.start_tokens",
            self.start_tokens,
            f"0 … {most}, within the budget",
        )
        require(self.factor > 1, "generation.thinking_stop.factor", self.factor, "above 1")

    def cut(self, max_new_tokens: int) -> int | None:
        return None

    def acts_on(self, num_tokens_R: Tensor, max_new_tokens: int) -> Tensor:
        return num_tokens_R > self.start_tokens

    def __call__(self, logits_RV: Tensor, num_tokens_R: Tensor, close_id: int, max_new_tokens: int) -> Tensor:
        excess_R = (num_tokens_R - self.start_tokens).clamp(min=0).double()
        growth_R = (torch.full_like(excess_R, self.factor) ** excess_R - 1).clamp(max=_MAX_INCREASE)
        close_R = logits_RV[:, close_id]
        # a forbidden token stays forbidden: −∞ + ∞ · 0 is not a number
        raised_R = torch.where(close_R.isfinite(), close_R + close_R.abs() * growth_R, close_R)
        return _replace_logit(logits_RV, close_id, raised_R)


@dataclass(frozen=True)
class MixtureRamp(_Ramp):
    """p' = (1 − r) p + r · 1_close with r = r_max · min(1, u)^γ."""

    max_fraction: float = 0.9
    """Largest mixture weight r_max, in (0, 1)."""

    def check(self, max_new_tokens: int) -> None:
        super().check(max_new_tokens)
        require(
            0 < self.max_fraction < 1, "generation.thinking_stop.max_fraction", self.max_fraction, "above 0 and below 1"
        )

    def __call__(self, logits_RV: Tensor, num_tokens_R: Tensor, close_id: int, max_new_tokens: int) -> Tensor:
        # only the closing token's odds change: p' / (1 − p') = (p + r / (1 − r)) / (1 − p)
        ratio_R = self.max_fraction * self.progress(num_tokens_R, max_new_tokens).clamp(max=1) ** self.power
        weight_R = (ratio_R / (1 - ratio_R)).log() + logits_RV.logsumexp(-1)
        return _replace_logit(logits_RV, close_id, torch.logaddexp(logits_RV[:, close_id], weight_R))


@dataclass(frozen=True)
class HardStop(_Budget):
    """Closes the segment at G new tokens. A block ends there, so that the limit is exact."""

    def cut(self, max_new_tokens: int) -> int | None:
        return self.budget(max_new_tokens)

    def acts_on(self, num_tokens_R: Tensor, max_new_tokens: int) -> Tensor:
        return num_tokens_R >= self.budget(max_new_tokens)

    def __call__(self, logits_RV: Tensor, num_tokens_R: Tensor, close_id: int, max_new_tokens: int) -> Tensor:
        is_over_R = self.acts_on(num_tokens_R, max_new_tokens)
        return torch.where(is_over_R[:, None], certain(logits_RV, close_id), logits_RV)


THINKING_STOPS: dict[str, type] = {
    "none": NoThinkingStop,
    "linear": LinearRamp,
    "exponential": ExponentialRamp,
    "mixture": MixtureRamp,
    "hard": HardStop,
}


def certain(logits_RV: Tensor, token_id: int) -> Tensor:
    """Logits under which the token has probability 1."""
    return _replace_logit(torch.full_like(logits_RV, -torch.inf), token_id, torch.zeros_like(logits_RV[:, 0]))


def _replace_logit(logits_RV: Tensor, token_id: int, logit_R: Tensor) -> Tensor:
    return logits_RV.index_copy(
        1, torch.tensor([token_id], device=logits_RV.device), logit_R[:, None].to(logits_RV.dtype)
    )

"""How is a thought that goes on and on brought to its end? The token that closes it becomes more probable, or certain.

iLLaDA (arXiv 2606.25331) raises that token's probability as the text grows, by a formula that is not published; these
are three candidates, and the plain cut-off they have to beat. In all of them g is the number of new tokens before the
place, g₀ = `start_tokens`, G the budget of the thought, and u = max(0, (g − g₀) / (G − g₀)).
Shapes: R rows, one place in each, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from lit_illada.errors import UserError
from lit_illada.runtime.lazy import Tensor, torch

_MOST = 1e6  # of a logit that is raised: anything above this is certain


class ThinkingStop(Protocol):
    """Changes the logits at one place of each row that is still thinking."""

    @property
    def is_on(self) -> bool: ...

    def check(self, max_new_tokens: int) -> None:
        """Raises UserError where the thought and its answer do not fit."""
        ...

    def cut(self, max_new_tokens: int) -> int | None:
        """New tokens after which a block must end, if any."""
        ...

    def acts_on(self, num_tokens_R: Tensor, max_new_tokens: int) -> Tensor:
        """(R,) bool: where logits are changed at all."""
        ...

    def __call__(self, logits_RV: Tensor, num_tokens_R: Tensor, close_id: int, max_new_tokens: int) -> Tensor:
        """num_tokens_R: g. close_id: the token that ends a thought."""
        ...


@dataclass(frozen=True)
class NoThinkingStop:
    """A thought ends where the model ends it."""

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
    """thinking_tokens: G; None: what `answer_tokens` leave of the budget. answer_tokens: room kept for the answer."""

    thinking_tokens: int | None = None
    answer_tokens: int = 32

    @property
    def is_on(self) -> bool:
        return True

    def budget(self, max_new_tokens: int) -> int:
        return max_new_tokens - self.answer_tokens if self.thinking_tokens is None else self.thinking_tokens

    def check(self, max_new_tokens: int) -> None:
        _require(self.answer_tokens >= 1, "answer_tokens", self.answer_tokens, "1 or more")
        most = max_new_tokens - self.answer_tokens
        if most < 1:
            raise UserError(
                f"generation.thinking_stop.answer_tokens is {self.answer_tokens}: it must be below "
                f"generation.max_new_tokens, which is {max_new_tokens}"
            )
        if self.thinking_tokens is not None and not 1 <= self.thinking_tokens <= most:
            raise UserError(
                f"generation.thinking_stop.thinking_tokens is {self.thinking_tokens}: it must be 1 … {most}, since "
                f"generation.max_new_tokens is {max_new_tokens} and {self.answer_tokens} tokens are the answer's"
            )

    def cut(self, max_new_tokens: int) -> int | None:
        return None


@dataclass(frozen=True)
class _Ramp(_Budget):
    """start_tokens: g₀. power: γ."""

    start_tokens: int = 64
    power: float = 1.0

    def check(self, max_new_tokens: int) -> None:
        super().check(max_new_tokens)
        most = self.budget(max_new_tokens) - 1
        _require(
            0 <= self.start_tokens <= most,
            "start_tokens",
            self.start_tokens,
            f"0 … {most}, within the thought's budget",
        )
        _require(self.power > 0, "power", self.power, "above 0")

    def acts_on(self, num_tokens_R: Tensor, max_new_tokens: int) -> Tensor:
        return num_tokens_R > self.start_tokens

    def progress(self, num_tokens_R: Tensor, max_new_tokens: int) -> Tensor:
        """u, float64; above 1 behind the budget."""
        length = self.budget(max_new_tokens) - self.start_tokens
        return ((num_tokens_R - self.start_tokens).double() / length).clamp(min=0)


@dataclass(frozen=True)
class LinearRamp(_Ramp):
    """ℓ_close += λ · u^γ. scale: λ, the logits added at the budget."""

    scale: float = 10.0

    def check(self, max_new_tokens: int) -> None:
        super().check(max_new_tokens)
        _require(self.scale > 0, "scale", self.scale, "above 0")

    def __call__(self, logits_RV: Tensor, num_tokens_R: Tensor, close_id: int, max_new_tokens: int) -> Tensor:
        added_R = self.scale * self.progress(num_tokens_R, max_new_tokens) ** self.power
        return _with(logits_RV, close_id, logits_RV[:, close_id] + added_R.clamp(max=_MOST))


@dataclass(frozen=True)
class ExponentialRamp:
    """ℓ_close += |ℓ_close| · (factor^(g − g₀) − 1) for g > g₀: Hugging Face's ExponentialDecayLengthPenalty, on the
    token that closes the thought. It has no budget, only a start."""

    start_tokens: int = 64
    factor: float = 1.01

    @property
    def is_on(self) -> bool:
        return True

    def check(self, max_new_tokens: int) -> None:
        most = max_new_tokens - 1
        _require(0 <= self.start_tokens <= most, "start_tokens", self.start_tokens, f"0 … {most}, within the budget")
        _require(self.factor > 1, "factor", self.factor, "above 1")

    def cut(self, max_new_tokens: int) -> int | None:
        return None

    def acts_on(self, num_tokens_R: Tensor, max_new_tokens: int) -> Tensor:
        return num_tokens_R > self.start_tokens

    def __call__(self, logits_RV: Tensor, num_tokens_R: Tensor, close_id: int, max_new_tokens: int) -> Tensor:
        excess_R = (num_tokens_R - self.start_tokens).clamp(min=0).double()
        growth_R = (torch.full_like(excess_R, self.factor) ** excess_R - 1).clamp(max=_MOST)
        close_R = logits_RV[:, close_id]
        return _with(logits_RV, close_id, close_R + close_R.abs() * growth_R)


@dataclass(frozen=True)
class MixtureRamp(_Ramp):
    """p' = (1 − r) p + r · 1_close with r = r_max · min(1, u)^γ. max_share: r_max."""

    max_share: float = 0.9

    def check(self, max_new_tokens: int) -> None:
        super().check(max_new_tokens)
        _require(0 < self.max_share < 1, "max_share", self.max_share, "above 0 and below 1")

    def __call__(self, logits_RV: Tensor, num_tokens_R: Tensor, close_id: int, max_new_tokens: int) -> Tensor:
        # only the closing token's odds change: p' / (1 − p') = (p + r / (1 − r)) / (1 − p)
        share_R = self.max_share * self.progress(num_tokens_R, max_new_tokens).clamp(max=1) ** self.power
        weight_R = (share_R / (1 - share_R)).log() + logits_RV.logsumexp(-1)
        return _with(logits_RV, close_id, torch.logaddexp(logits_RV[:, close_id], weight_R))


@dataclass(frozen=True)
class HardStop(_Budget):
    """At G new tokens the thought is closed, whatever the model would say. A block ends there, so that it is exact."""

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
    """Logits that leave no other token."""
    return _with(torch.full_like(logits_RV, -torch.inf), token_id, torch.zeros_like(logits_RV[:, 0]))


def _with(logits_RV: Tensor, token_id: int, logit_R: Tensor) -> Tensor:
    return logits_RV.index_copy(
        1, torch.tensor([token_id], device=logits_RV.device), logit_R[:, None].to(logits_RV.dtype)
    )


def _require(is_right: bool, name: str, value: float, allowed: str) -> None:
    if not is_right:
        raise UserError(f"generation.thinking_stop.{name} is {value}: it must be {allowed}")

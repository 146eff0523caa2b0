"""How much does a row count, given its mask ratio? The loss weights w(t) on the sum over its masked tokens.

The weights of Gaussian diffusion are functions of the log signal-to-noise ratio, which the linear schedule α = 1 − t
makes λ(t) = log((1 − t)/t). A weight f(λ) of theirs is here w(t) = f(λ)/t: 1/t is the bound, f bends it. The closed
forms below are derived from that; the tests compare each with its f.

A new one is a frozen dataclass, a row in `WEIGHTINGS` and a YAML; tests find it there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from lit_illada.errors import UserError
from lit_illada.runtime.lazy import Tensor, torch


@dataclass(frozen=True)
class Weighting(ABC):
    """w: t in (0, 1], any shape, float64, to finite weights of the same shape."""

    @abstractmethod
    def __call__(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Elbo(Weighting):
    """1/t: with p uniform the loss is an upper bound on −log p(x). LLaDA, arXiv 2502.09992, MDLM 2406.07524."""

    def __call__(self, t: Tensor) -> Tensor:
        return 1 / t


@dataclass(frozen=True)
class Flat(Weighting):
    """1: every masked token counts the same. MaskGIT, arXiv 2202.04200; LLaDA 2.0, 2512.15745."""

    def __call__(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Sigmoid(Weighting):
    """σ(k − λ)/t = 1/(t + (1 − t)·e^{−k}): k = 0 is flat, k → ∞ the bound. arXiv 2410.19324, 2511.19664."""

    k: float = 0.0

    def __call__(self, t: Tensor) -> Tensor:
        return 1 / (t + (1 - t) * math.exp(-self.k))


@dataclass(frozen=True)
class FlowMatching(Weighting):
    """e^{−λ/2}/t = 1/√(t(1 − t)). arXiv 2511.19664.

    It has an integrable pole at t = 1, which exact-k reaches: t above `max_ratio` weighs as `max_ratio` does.
    """

    max_ratio: float = 0.999

    def __post_init__(self) -> None:
        _require(0 < self.max_ratio < 1, "max_ratio", self.max_ratio, "0 < max_ratio < 1")

    def __call__(self, t: Tensor) -> Tensor:
        t = t.clamp(max=self.max_ratio)
        return 1 / (t * (1 - t)).sqrt()


@dataclass(frozen=True)
class Sech(Weighting):
    """sech(λ/2)/t = 2√((1 − t)/t): improved DDPM's cosine schedule; 0 at t = 1. arXiv 2511.19664."""

    def __call__(self, t: Tensor) -> Tensor:
        return 2 * ((1 - t) / t).sqrt()


@dataclass(frozen=True)
class Gaussian(Weighting):
    """N(λ; mean, std²)/t, after EDM's choice of noise levels; 0 at both ends. arXiv 2206.00364."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _require(self.std > 0, "std", self.std, "above 0")

    def __call__(self, t: Tensor) -> Tensor:
        z = (-t.logit() - self.mean) / self.std
        return (-z * z / 2).exp() / (self.std * math.sqrt(2 * math.pi) * t)


@dataclass(frozen=True)
class ClippedElbo(Weighting):
    """min(1/t, γ): the bound without its noisiest weights. After min-SNR, arXiv 2303.09556; GIDD, 2503.04482."""

    gamma: float = 10.0

    def __post_init__(self) -> None:
        _require(self.gamma >= 1, "gamma", self.gamma, "at least 1, the bound's weight at t = 1")

    def __call__(self, t: Tensor) -> Tensor:
        return (1 / t).clamp(max=self.gamma)


@dataclass(frozen=True)
class Linear(Weighting):
    """1 − t. Reparameterised discrete diffusion, arXiv 2302.05737; Dream-Coder."""

    def __call__(self, t: Tensor) -> Tensor:
        return 1 - t


WEIGHTINGS: dict[str, type[Weighting]] = {
    "elbo": Elbo,
    "flat": Flat,
    "sigmoid": Sigmoid,
    "flow_matching": FlowMatching,
    "sech": Sech,
    "gaussian": Gaussian,
    "clipped_elbo": ClippedElbo,
    "linear": Linear,
}


def _require(is_valid: bool, field: str, seen: object, allowed: str) -> None:
    if not is_valid:
        raise UserError(f"objective.weighting: {field} is {seen}: allowed is {allowed}")

"""Loss weights w(t): the factor on the sum over a row's masked tokens, as a function of its mask ratio t.

Gaussian diffusion weights its loss by functions f(λ) of the log signal-to-noise ratio, which for the linear schedule
α = 1 − t is λ(t) = log((1 − t)/t). The corresponding weight here is w(t) = f(λ(t))/t, where 1/t alone gives the
likelihood bound. The closed forms below follow from that; the tests compare each with its f.

To add one, write a frozen dataclass, a row in `WEIGHTINGS` and a YAML file; the tests cover it through the table.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from lit_illada.errors import require
from lit_illada.runtime.lazy import Tensor, torch


@dataclass(frozen=True)
class Weighting(ABC):
    """A function w(t)."""

    @abstractmethod
    def __call__(self, t: Tensor) -> Tensor:
        """Finite weights of mask ratios t in (0, 1]; float64, any shape, same shape returned."""


@dataclass(frozen=True)
class Elbo(Weighting):
    """1/t: with p uniform the loss is an upper bound on −log p(x). LLaDA, arXiv 2502.09992, MDLM 2406.07524."""

    def __call__(self, t: Tensor) -> Tensor:
        return 1 / t


@dataclass(frozen=True)
class Flat(Weighting):
    """1: equal weight of all masked tokens. MaskGIT, arXiv 2202.04200; LLaDA 2.0, 2512.15745."""

    def __call__(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Sigmoid(Weighting):
    """σ(k − λ)/t = 1/(t + (1 − t)·e^{−k}): k = 0 is flat, k → ∞ the bound. arXiv 2410.19324, 2511.19664."""

    k: float = 0.0
    """Shift of the sigmoid in λ, −80 to 80; larger values give low mask ratios more weight."""

    def __post_init__(self) -> None:
        # e^{−k} and the weight stay finite in float32
        require(abs(self.k) <= 80, "objective.weighting.k", self.k, "−80 to 80")

    def __call__(self, t: Tensor) -> Tensor:
        return 1 / (t + (1 - t) * math.exp(-self.k))


@dataclass(frozen=True)
class FlowMatching(Weighting):
    """e^{−λ/2}/t = 1/√(t(1 − t)). arXiv 2511.19664.

    The weight has an integrable pole at t = 1, a ratio that exact-k draws, so t is clamped.
    """

    max_ratio: float = 0.999
    """Ratios above are weighted as this one."""

    def __post_init__(self) -> None:
        require(0 < self.max_ratio < 1, "objective.weighting.max_ratio", self.max_ratio, "0 < max_ratio < 1")

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
    """N(λ; mean, std²)/t, after EDM's distribution of noise levels; 0 at both ends. arXiv 2206.00364."""

    mean: float = 0.0
    """Log signal-to-noise ratio λ with the largest factor; 0 is t = 1/2."""
    std: float = 1.0
    """Standard deviation in λ."""

    def __post_init__(self) -> None:
        require(self.std > 0, "objective.weighting.std", self.std, "above 0")

    def __call__(self, t: Tensor) -> Tensor:
        z = (-t.logit() - self.mean) / self.std
        return (-z * z / 2).exp() / (self.std * math.sqrt(2 * math.pi) * t)


@dataclass(frozen=True)
class ClippedElbo(Weighting):
    """min(1/t, γ): the bound with its largest weights clipped. After min-SNR, arXiv 2303.09556; GIDD, 2503.04482."""

    gamma: float = 10.0
    """Largest weight."""

    def __post_init__(self) -> None:
        require(self.gamma >= 1, "objective.weighting.gamma", self.gamma, "at least 1, the bound's weight at t = 1")

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

"""Distributions p(t) of the mask ratio t, each with its density, distribution function and quantile function.

A distribution is defined on the unit interval (`unit_*`, x) and mapped to its support [low, high] (t) by one affine
map. For most of them the support is [ε, 1]: LLaDA's t = ε + (1 − ε)·x, which keeps the weight 1/t finite. All
computation is float64, on any device.

To add one, write a frozen dataclass, a row in `MASK_RATIOS` and a YAML file; the tests cover it through the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Self

from lit_illada.errors import require
from lit_illada.objective.distribution import MaskRatio, Tabulated
from lit_illada.runtime.lazy import LazyModule, Tensor, torch

scipy_special = LazyModule("scipy.special")


@dataclass(frozen=True)
class Uniform(MaskRatio):
    """U[ε, 1]. LLaDA, arXiv 2502.09992."""

    epsilon: float = 1e-3
    """Smallest mask ratio; bounds the weight 1/t by 1/epsilon."""

    def __post_init__(self) -> None:
        require(0 <= self.epsilon < 1, "objective.mask_ratio.epsilon", self.epsilon, "0 ≤ epsilon < 1")

    @property
    def support(self) -> tuple[float, float]:
        return self.epsilon, 1.0

    def unit_density(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)

    def unit_cdf(self, x: Tensor) -> Tensor:
        return x

    def unit_quantile(self, u: Tensor) -> Tensor:
        return u


@dataclass(frozen=True)
class Band(Uniform):
    """U[max(low, ε), high] in (0, 1]. LLaDA 2.0, arXiv 2512.15745; BD3-LM, 2503.09573."""

    low: float = 0.3
    """Smallest mask ratio, unless epsilon is larger."""
    high: float = 0.8
    """Largest mask ratio."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.low < self.high <= 1,
            "objective.mask_ratio.low, high",
            (self.low, self.high),
            "0 ≤ low < high ≤ 1",
        )
        require(self.epsilon < self.high, "objective.mask_ratio.epsilon", self.epsilon, f"below high = {self.high}")

    @property
    def support(self) -> tuple[float, float]:
        return max(self.low, self.epsilon), self.high


@dataclass(frozen=True)
class Cosine(Uniform):
    """x = cos(πu/2) with u uniform: high ratios. MaskGIT, arXiv 2202.04200, and MD4's α = 1 − cos(π(1 − u)/2)."""

    def unit_density(self, x: Tensor) -> Tensor:
        return (2 / math.pi) / (1 - x * x).sqrt()

    def unit_cdf(self, x: Tensor) -> Tensor:
        return x.asin() * (2 / math.pi)

    def unit_quantile(self, u: Tensor) -> Tensor:
        return (u * (math.pi / 2)).sin()


@dataclass(frozen=True)
class Polynomial(Uniform):
    """x = u^exponent with u uniform. MD4's α = 1 − u^k, arXiv 2406.04329."""

    exponent: float = 2.0
    """Above 1, low ratios are more frequent; 1 is uniform."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.exponent > 0, "objective.mask_ratio.exponent", self.exponent, "above 0")

    def unit_density(self, x: Tensor) -> Tensor:
        return x ** (1 / self.exponent - 1) / self.exponent

    def unit_cdf(self, x: Tensor) -> Tensor:
        return x ** (1 / self.exponent)

    def unit_quantile(self, u: Tensor) -> Tensor:
        return u**self.exponent


@dataclass(frozen=True)
class LogitNormal(Uniform):
    """logit(x) ~ N(mean, std²), a bell that vanishes at both ends. After arXiv 2605.13026.

    The density decays so fast at both ends that an importance-corrected Bernoulli estimate has a finite mean but an
    infinite variance.
    """

    mean: float = 0.0
    """Mean of logit(x); 0 centres the bell at 1/2."""
    std: float = 1.0
    """Standard deviation of logit(x)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.std > 0, "objective.mask_ratio.std", self.std, "above 0")

    def unit_density(self, x: Tensor) -> Tensor:
        z = (x.logit() - self.mean) / self.std
        return _normal_density(z) / (self.std * x * (1 - x)).clamp(min=1e-300)

    def unit_cdf(self, x: Tensor) -> Tensor:
        return torch.special.ndtr((x.logit() - self.mean) / self.std)

    def unit_quantile(self, u: Tensor) -> Tensor:
        return (self.mean + self.std * torch.special.ndtri(u)).sigmoid()


@dataclass(frozen=True)
class Beta(Uniform):
    """Beta(a, b), tabulated in 4 096 cells of exact mass, since torch has no incomplete beta function."""

    a: float = 2.0
    """First shape parameter; larger values favour high ratios."""
    b: float = 2.0
    """Second shape parameter; larger values favour low ratios."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.a > 0 and self.b > 0, "objective.mask_ratio.a, b", (self.a, self.b), "above 0")

    def unit_density(self, x: Tensor) -> Tensor:
        return _beta_table(self.a, self.b, x.device).unit_density(x)

    def unit_cdf(self, x: Tensor) -> Tensor:
        return _beta_table(self.a, self.b, x.device).unit_cdf(x)

    def unit_quantile(self, u: Tensor) -> Tensor:
        return _beta_table(self.a, self.b, u.device).unit_quantile(u)


@dataclass(frozen=True)
class Fixed(MaskRatio):
    """A single ratio, as a control. BERT, arXiv 1810.04805: 0.15. A point mass, which has no density."""

    ratio: float = 0.15
    """The mask ratio of all rows."""
    has_density: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, "objective.mask_ratio.ratio", self.ratio, "0 < ratio ≤ 1")

    @property
    def support(self) -> tuple[float, float]:
        return self.ratio, self.ratio

    def unit_density(self, x: Tensor) -> Tensor:
        return torch.full_like(x, math.inf)

    def unit_cdf(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)

    def unit_quantile(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)

    def density(self, t: Tensor) -> Tensor:
        return torch.where(t == self.ratio, math.inf, 0.0).to(t.dtype)

    def cdf(self, t: Tensor) -> Tensor:
        return (t >= self.ratio).to(t.dtype)


@dataclass(frozen=True)
class Curriculum(Uniform):
    """A normal truncated to [0, 1] whose centre moves from `start` to `end`. After Quokka, arXiv 2510.03280.

    The density of the object is centred at `start`; `at` returns a copy with another start.
    """

    start: float = 0.2
    """Centre at the beginning of training."""
    end: float = 0.8
    """Centre at the end of training."""
    std: float = 0.2
    """Standard deviation before truncation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.start <= 1 and 0 <= self.end <= 1,
            "objective.mask_ratio.start, end",
            (self.start, self.end),
            "0 to 1",
        )
        require(self.std >= 0.01, "objective.mask_ratio.std", self.std, "at least 0.01")

    def at(self, progress: float) -> Self:
        return replace(self, start=self.start + (self.end - self.start) * min(max(progress, 0.0), 1.0))

    def unit_density(self, x: Tensor) -> Tensor:
        below, above = self._cut()
        return _normal_density((x - self.start) / self.std) / (self.std * (above - below))

    def unit_cdf(self, x: Tensor) -> Tensor:
        below, above = self._cut()
        return (torch.special.ndtr((x - self.start) / self.std) - below) / (above - below)

    def unit_quantile(self, u: Tensor) -> Tensor:
        below, above = self._cut()
        return (self.start + self.std * torch.special.ndtri(below + u * (above - below))).clamp(0, 1)

    def _cut(self) -> tuple[float, float]:
        """Probability mass of the untruncated normal below 0, and below 1."""
        scale = self.std * math.sqrt(2)
        return (1 + math.erf(-self.start / scale)) / 2, (1 + math.erf((1 - self.start) / scale)) / 2


@dataclass(frozen=True)
class VarianceOptimal(Uniform):
    """p*(t) ∝ √E[X² | t], X the row's weighted loss: the density of least variance, learnt. arXiv 2511.18159.

    By Cauchy–Schwarz, E_p[(X/p)²] is smallest for this p. It is estimated as a table of equal cells during training,
    uniform before the first step. The loss must be divided by it, which the objective's config checks.
    """

    num_bins: int = 32
    """Cells of the table."""
    floor: float = 0.2
    """Fraction of the density that stays uniform; bounds the correction 1/p by 1/floor."""
    decay: float = 0.99
    """Factor on the sums of earlier losses at each optimizer step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_bins >= 2, "objective.mask_ratio.num_bins", self.num_bins, "at least 2")
        require(0 < self.floor <= 1, "objective.mask_ratio.floor", self.floor, "0 < floor ≤ 1")
        require(0 <= self.decay < 1, "objective.mask_ratio.decay", self.decay, "0 ≤ decay < 1")

    def bins_of(self, t: Tensor) -> Tensor:
        """(...) int64: the cell of each ratio. Borders belong to the lower cell, where exact-k's k/L has its mass."""
        low, high = self.support
        return ((t - low) / (high - low) * self.num_bins).ceil().long().clamp(1, self.num_bins) - 1

    def learnt(self, moments: Tensor) -> Tabulated:
        """The density estimated from `moments` (2, num_bins): sums of X², and numbers of rows."""
        total, count = moments.double()
        # one pseudo-row with the overall mean in each cell regularises cells with few rows
        mean = total.sum() / count.sum().clamp(min=1)
        root = ((total + mean) / (count + 1)).sqrt()
        mass = torch.where(root.sum() > 0, root / root.sum(), 1 / self.num_bins)
        return Tabulated((1 - self.floor) * mass + self.floor / self.num_bins, self.epsilon)


MASK_RATIOS: dict[str, type[MaskRatio]] = {
    "uniform": Uniform,
    "band": Band,
    "cosine": Cosine,
    "polynomial": Polynomial,
    "logit_normal": LogitNormal,
    "beta": Beta,
    "fixed": Fixed,
    "curriculum": Curriculum,
    "variance_optimal": VarianceOptimal,
}


def has_symmetric_support(mask_ratio: MaskRatio) -> bool:
    """Whether t and 1 − t have the same support."""
    low, high = mask_ratio.support
    return math.isclose(low + high, 1.0, abs_tol=1e-9)


def is_symmetric(mask_ratio: MaskRatio) -> bool:
    """Whether t and 1 − t have the same distribution: F(t) + F(1 − t) = 1, on a grid that avoids usual point masses."""
    t = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    return bool(((mask_ratio.cdf(t) + mask_ratio.cdf(1 - t) - 1).abs() < 1e-9).all())


def _normal_density(z: Tensor) -> Tensor:
    return (-z * z / 2).exp() / math.sqrt(2 * math.pi)


@lru_cache(maxsize=32)
def _beta_table(a: float, b: float, device: torch.device, num_cells: int = 4096) -> Tabulated:
    borders = torch.linspace(0, 1, num_cells + 1, dtype=torch.float64)
    return Tabulated(torch.from_numpy(scipy_special.betainc(a, b, borders.numpy())).diff().to(device), epsilon=0.0)

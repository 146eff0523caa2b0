"""Interface of distributions of the mask ratio t, and a tabulated density."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

from lit_illada.runtime.lazy import Tensor, torch


@dataclass(frozen=True)
class MaskRatio(ABC):
    """A distribution of t. All methods map a float64 tensor to a float64 tensor of the same shape."""

    has_density: ClassVar[bool] = True
    """False for a point mass, which importance correction cannot divide by."""

    @property
    @abstractmethod
    def support(self) -> tuple[float, float]:
        """Smallest and largest ratio that can be drawn."""

    @abstractmethod
    def unit_density(self, x: Tensor) -> Tensor:
        """Density on [0, 1]."""

    @abstractmethod
    def unit_cdf(self, x: Tensor) -> Tensor:
        """Distribution function on [0, 1]."""

    @abstractmethod
    def unit_quantile(self, u: Tensor) -> Tensor:
        """Inverse of `unit_cdf`."""

    def density(self, t: Tensor) -> Tensor:
        """p(t); 0 outside the support."""
        low, high = self.support
        x = (t - low) / (high - low)
        is_inside = (x - 0.5).abs() < 0.5 + 1e-12  # a ratio drawn at a border may lie a rounding error outside
        return torch.where(is_inside, self.unit_density(x.clamp(0, 1)) / (high - low), 0.0)

    def cdf(self, t: Tensor) -> Tensor:
        """P(ratio ≤ t)."""
        low, high = self.support
        return self.unit_cdf(((t - low) / (high - low)).clamp(0, 1))

    def quantile(self, u: Tensor) -> Tensor:
        """Inverse of `cdf`: turns a uniform u in (0, 1) into a draw of t (inverse transform sampling)."""
        low, high = self.support
        return low + (high - low) * self.unit_quantile(u)

    def at(self, progress: float) -> Self:
        """The distribution at this fraction of training, 0 to 1; only a curriculum changes."""
        return self


@dataclass(frozen=True, eq=False)
class Tabulated(MaskRatio):
    """A density that is constant in each of K equal cells of the unit interval."""

    masses: Tensor
    """(K,) float64, probability of each cell, sum 1."""
    epsilon: float
    """Smallest mask ratio."""

    # MaskRatio compares fields of its own, of which it has none: without these every table equals every other, and a
    # cache of what was computed for one would serve them all
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def support(self) -> tuple[float, float]:
        return self.epsilon, 1.0

    def unit_density(self, x: Tensor) -> Tensor:
        return self.masses[_cell(x, len(self.masses))] * len(self.masses)

    def unit_cdf(self, x: Tensor) -> Tensor:
        cell = _cell(x, len(self.masses))
        return self._mass_before()[cell] + self.masses[cell] * (x * len(self.masses) - cell)

    def unit_quantile(self, u: Tensor) -> Tensor:
        before = self._mass_before()
        cell = torch.searchsorted(before, u, right=True) - 1
        fraction = ((u - before[cell]) / self.masses[cell].clamp(min=1e-300)).clamp(0, 1)
        return (cell + fraction) / len(self.masses)

    def _mass_before(self) -> Tensor:
        return self.masses.cumsum(0) - self.masses


def _cell(x: Tensor, num_cells: int) -> Tensor:
    return (x * num_cells).long().clamp(0, num_cells - 1)

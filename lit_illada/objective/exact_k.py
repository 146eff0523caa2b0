"""Exact-k masking with the expected objective of Bernoulli masking, for every density, weight and row length.

Masking each of L tokens with probability t, t ~ p, masks k of them with probability Bin(k; L, t). Given k every subset
is equally likely, whatever t was, so t can be integrated out (Rao–Blackwell): draw k from its marginal distribution,
mask k tokens, and weight their loss by the conditional mean of w(t) given k,

    q(k) = ∫ p(t) Bin(k; L, t) dt,    E[w | k] = ∫ w(t) p(t) Bin(k; L, t) dt / q(k).

The expected loss is that of Bernoulli masking, and the variance is no larger. An empty mask carries no loss, so k is
drawn from 1…L and the weight multiplied by 1 − q(0). With importance correction w·p is replaced by w on p's support.
For p = U[0, 1] and w = 1/t this gives LLaDA's form: k uniform on 1…L, weight L/k.

The integrals are sums over Gauss–Legendre nodes in cells of equal width in arccos(1 − 2t), the transform in which
Bin(k; L, ·) is about 1/√L wide everywhere. Shapes: B rows, L tokens, N nodes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from lit_illada.objective.distribution import MaskRatio
from lit_illada.objective.weighting import Weighting

_NODES_PER_CELL = 4
_TINY = 1e-290
_MAX_LENGTHS = 2048  # tables of one density that are kept; 2 · 8 bytes per token each, 3 · 8 if corrected


@dataclass(frozen=True, eq=False)
class CountTable:
    """Distribution and weights of k for rows of one length; (L,) float64 each, entry k − 1 for k."""

    cdf: Tensor
    """P(at most k masked | at least one masked)."""
    weight: Tensor
    """(1 − q(0))·E[w | k]."""
    density: Tensor
    """Divisor of the weight under importance correction; 1 without."""


def count_table(
    mask_ratio: MaskRatio, weighting: Weighting, length: int, device: torch.device, is_corrected: bool = True
) -> CountTable:
    """The table for rows of `length` maskable tokens, at least 1.

    Cached while its density is one of the last in use: by all steps of a run, or by the micro-batches of a step where
    the density is learnt or a curriculum. is_corrected: compute `density` too, which takes as long as the rest.
    """
    return _tables(mask_ratio, weighting, device, is_corrected)(length)


# one cache per density, so that neither rows of many lengths nor densities that change displace each other's tables
@lru_cache(maxsize=4)
def _tables(
    mask_ratio: MaskRatio, weighting: Weighting, device: torch.device, is_corrected: bool
) -> Callable[[int], CountTable]:
    """The tables of a density by length."""
    return lru_cache(maxsize=_MAX_LENGTHS)(partial(_computed_table, mask_ratio, weighting, device, is_corrected))


def _computed_table(
    mask_ratio: MaskRatio, weighting: Weighting, device: torch.device, is_corrected: bool, length: int
) -> CountTable:
    t_N, mass_N = _nodes_by_probability(mask_ratio, length, device)
    binomial_KN = _binomial(length, t_N)
    q_K = binomial_KN @ mass_N
    target_K = binomial_KN @ (mass_N * weighting(t_N))
    any_masked = 1 - q_K[0]
    weight = _ratio(target_K, q_K)[1:] * any_masked
    cdf = q_K[1:].cumsum(0)
    if not is_corrected:
        return CountTable(cdf / cdf[-1], weight, weight.new_ones(()).expand_as(weight))
    corrected_K = _corrected_target(weighting, *mask_ratio.support, length, device)
    corrected = _ratio(corrected_K, q_K)[1:] * any_masked
    return CountTable(cdf / cdf[-1], weight, torch.where(corrected > 0, weight / corrected, 1.0))


@lru_cache(maxsize=_MAX_LENGTHS)
def _corrected_target(weighting: Weighting, low: float, high: float, length: int, device: torch.device) -> Tensor:
    """(L + 1,): ∫ w(t) Bin(k; L, t) dt over [low, high]; the same for every density with this support."""
    t_N, width_N = _gauss_legendre(_borders(low, high, length, device))
    return _binomial(length, t_N) @ (width_N * weighting(t_N))


def draw_counts(
    mask_ratio: MaskRatio, weighting: Weighting, u_B: Tensor, length_B: Tensor, is_corrected: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """(k, weight, density) of each row, (B,) each; 0, 1 and 1 for a row without maskable tokens.

    u_B: uniform numbers, which the quantile function of k turns into k. length_B: maskable tokens of each row.
    is_corrected: whether the density is needed; it is 1 otherwise.
    """
    k_B, weight_B, density_B = torch.zeros_like(length_B), torch.ones_like(u_B), torch.ones_like(u_B)
    for length in length_B.unique().tolist():
        if not length:
            continue
        is_here_B = length_B == length
        table = count_table(mask_ratio, weighting, length, u_B.device, is_corrected)
        # the table is accurate to about 1e-10; the factor assigns a u at a border to the lower k
        index_B = torch.searchsorted(table.cdf, u_B * (1 - 1e-9)).clamp(max=length - 1)
        k_B = torch.where(is_here_B, index_B + 1, k_B)
        weight_B = torch.where(is_here_B, table.weight[index_B], weight_B)
        density_B = torch.where(is_here_B, table.density[index_B], density_B)
    return k_B, weight_B, density_B


def _binomial(length: int, t_N: Tensor) -> Tensor:
    """(L + 1, N): Bin(k; L, t)."""
    k_K1 = torch.arange(length + 1, dtype=torch.float64, device=t_N.device)[:, None]
    log_choose_K1 = math.lgamma(length + 1) - torch.lgamma(k_K1 + 1) - torch.lgamma(length - k_K1 + 1)
    return (log_choose_K1 + torch.xlogy(k_K1, t_N) + torch.xlogy(length - k_K1, 1 - t_N)).exp()


def _nodes_by_probability(mask_ratio: MaskRatio, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(N,) nodes t and their masses under p.

    Quadrature in u = F(t) instead of t is exact for densities that are constant or singular within a cell.
    """
    border_C = _borders(0.0, 1.0, length, device)
    u_C = mask_ratio.cdf(border_C)
    u_N, mass_N = _gauss_legendre(u_C)
    return mask_ratio.quantile(u_N[mass_N > 0]), mass_N[mass_N > 0]


def _borders(low: float, high: float, length: int, device: torch.device) -> Tensor:
    """Cell borders, equally spaced in arccos(1 − 2t)."""
    num_cells = 3 * math.isqrt(length) + 128  # the constant resolves weights with a kink or near a pole
    angle = torch.linspace(math.acos(1 - 2 * low), math.acos(1 - 2 * high), num_cells + 1, dtype=torch.float64)
    return ((1 - angle.cos()) / 2).clamp(low, high).to(device)


def _gauss_legendre(border_C: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss–Legendre nodes and weights of all cells between neighbouring borders, (N,) each."""
    x, weight = (torch.from_numpy(part).to(border_C) for part in np.polynomial.legendre.leggauss(_NODES_PER_CELL))
    width_C1 = border_C.diff()[:, None]
    return (border_C[:-1, None] + width_C1 * (x + 1) / 2).flatten(), (width_C1 * weight / 2).flatten()


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, or 0 where the denominator vanishes: such a k is never drawn."""
    return torch.where(denominator > _TINY, numerator / denominator.clamp(min=_TINY), 0.0)

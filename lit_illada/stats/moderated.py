"""Moderated variances: each comparison's variance is combined with that of the other comparisons.

A variance from three seeds has two degrees of freedom; Student's critical value is then so large that differences of
three standard deviations are mostly missed. The moderated t statistic (Smyth 2004, doi:10.2202/1544-6115.1027) adds a
few prior degrees of freedom at the variance typical of all comparisons. Three changes keep its error rate where
comparisons differ in variance, as arms of a sweep do:

- the typical variance is the median of the *other* comparisons, each divided by the median of chi²/dof, so that one
  erratic comparison does not shift it;
- a comparison's own variance is a floor: borrowing never makes it smaller;
- the degrees of freedom are Satterthwaite's for the weighted sum, so that a comparison with a far larger variance than
  the others falls back to its own degrees of freedom.

With a single comparison all of this is the ordinary t test.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

PRIOR_DOF = 3.0  # at most; fewer where the other comparisons, or the comparison itself, have less to support it

Array = NDArray[np.float64]


def moderate(variances: Array, dof: Array) -> tuple[Array, Array]:
    """Variances and degrees of freedom (..., k) of k comparisons, moderated by each other.

    dof: of each variance, at least 1, broadcast to its shape. A nan variance marks a comparison without one; it stays
    nan and lends nothing.
    """
    is_known = ~np.isnan(variances)
    dof = np.where(is_known, dof, 0.0)
    typical = _median_of_others(variances * dof / chdtri(np.maximum(dof, 1.0), 0.5))
    # two seeds carry hardly any evidence that a variance is the typical one: one prior degree of freedom
    prior_dof = np.minimum(np.minimum(PRIOR_DOF, 2 * dof - 1), dof.sum(-1, keepdims=True) - dof)
    prior_dof = np.where(np.isnan(typical) | ~is_known, 0.0, prior_dof)
    own, prior = dof * variances, prior_dof * np.nan_to_num(typical)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = own**2 / dof + np.where(prior_dof > 0, prior**2 / prior_dof, 0.0)
        moderated_dof = np.where(spread > 0, (own + prior) ** 2 / spread, dof)
        return np.fmax(variances, (own + prior) / (dof + prior_dof)), moderated_dof


def _median_of_others(values: Array) -> Array:
    """The median (..., k) of all values but one's own, nan left out; nan where there are no others."""
    num_known = (~np.isnan(values)).sum(-1, keepdims=True)
    order = np.argsort(values, -1)  # nan last
    ordered, rank = np.take_along_axis(values, order, -1), np.argsort(order, -1)
    num_others = num_known - ~np.isnan(values)
    middles = []
    for middle in ((num_others - 1) // 2, num_others // 2):
        index = middle + (middle >= rank)  # in the sorted list, which includes the own value
        middles.append(np.take_along_axis(ordered, np.clip(index, 0, values.shape[-1] - 1), -1))
    return np.where(num_others > 0, (middles[0] + middles[1]) / 2, np.nan)

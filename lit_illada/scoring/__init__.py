"""Numbers by which arms are compared, the same whatever objective trained them."""

from lit_illada.scoring.likelihood import Likelihood, MaskGrid, RowScores, nll, nll_bound

__all__ = ["Likelihood", "MaskGrid", "RowScores", "nll", "nll_bound"]

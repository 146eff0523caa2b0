"""Training curves over a log interval."""

import math

import torch

from lit_illada.objective.loss import LossSum, RatioBins
from lit_illada.training.metrics import TrainingCurves


def micro_batch(loss, nll=2.0):
    bins = [torch.full((10,), value, dtype=torch.float64) for value in (nll, 1.0, 4.0)]
    return LossSum(torch.tensor(loss), torch.tensor(2.0, dtype=torch.float64), RatioBins(*bins))


def test_a_micro_batch_with_a_non_finite_loss_is_excluded_from_the_curves():
    clean, spoilt = TrainingCurves(), TrainingCurves()
    for curves in (clean, spoilt):
        curves.update(micro_batch(6.0))
        curves.update(micro_batch(8.0))
    for bad in (math.nan, math.inf):
        spoilt.update(micro_batch(bad, nll=bad))
    assert spoilt.compute()["loss"] == 3.5
    for name, value in clean.compute().items():
        assert torch.equal(spoilt.compute()[name], value)

"""Devices of a module's collectives."""

from types import SimpleNamespace

import pytest
import torch

from lit_illada.training import ranked_module
from lit_illada.training.ranked_module import RankedModule

RANKS_DEVICE = torch.device("meta")


class OneRank(RankedModule):
    """A module that is on the CPU again after a fit, whose rank has another device."""

    def __init__(self, reduce):
        super().__init__(torch.nn.Linear(1, 1))
        strategy = SimpleNamespace(root_device=RANKS_DEVICE, reduce=reduce)
        self.stand_in = SimpleNamespace(strategy=strategy, world_size=2, global_rank=0)

    @property
    def trainer(self):
        return self.stand_in


@pytest.fixture
def reduced():
    """Devices of the reduced tensors."""
    return []


@pytest.fixture
def module(reduced):
    def reduce(value, group=None, reduce_op=None):
        reduced.append(value.device)
        return torch.tensor(3)

    return OneRank(reduce)


def test_sums_and_maxima_are_reduced_on_the_ranks_device_after_a_fit(module, reduced):
    assert module.device == torch.device("cpu")
    assert module._summed(torch.tensor(1)) == 3
    assert module._largest(1) == 3
    assert reduced == [RANKS_DEVICE] * 2


def test_rows_are_gathered_on_the_ranks_device_after_a_fit(module, monkeypatch):
    monkeypatch.setattr(ranked_module, "_gather_rows", lambda rows, group: rows)
    assert module._gathered(torch.zeros(2, 3)).device == RANKS_DEVICE

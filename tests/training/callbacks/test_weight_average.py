"""Device and state of the moving average of the weights."""

from types import SimpleNamespace

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from lit_illada.training.callbacks.weight_average import WeightAverage


class OneLayer(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


def test_the_average_is_on_the_training_device_before_lightning_moves_the_module():
    average, elsewhere = WeightAverage(decay=0.9), torch.device("meta")
    average.setup(SimpleNamespace(strategy=SimpleNamespace(root_device=elsewhere)), OneLayer(), "fit")
    assert {weight.device for weight in average._average_model.parameters()} == {elsewhere}


def test_the_state_has_the_name_under_which_earlier_checkpoints_hold_it():
    assert WeightAverage(decay=0.9).state_key == EMAWeightAveraging(decay=0.9).state_key

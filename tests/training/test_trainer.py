"""Lightning's Trainer, built for devices that this machine need not have."""

import pytest
import torch

from lit_illada.training.config.trainer import Accelerator, TrainerConfig
from lit_illada.training.trainer import build_lightning_trainer


@pytest.fixture
def selected(monkeypatch):
    """Indices passed to torch.cuda.set_device, on a machine that seems to have one GPU."""
    indices = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
    monkeypatch.setattr(torch._C, "_cuda_setDevice", indices.append, raising=False)
    return indices


def test_a_run_on_one_gpu_selects_the_first_visible_one(selected, tmp_path):
    trainer = build_lightning_trainer(TrainerConfig(accelerator=Accelerator.gpu), tmp_path, [], [])
    trainer.strategy.setup_environment()
    assert trainer.strategy.root_device == torch.device("cuda", 0)
    assert selected == [0]

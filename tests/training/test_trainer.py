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


def test_gradients_of_ddp_are_views_of_its_buckets(tmp_path):
    config = TrainerConfig(accelerator=Accelerator.cpu, devices=2, micro_batch_rows=16)
    strategy = build_lightning_trainer(config, tmp_path, [], []).strategy
    assert strategy._ddp_kwargs["gradient_as_bucket_view"]

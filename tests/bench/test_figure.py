"""Timing waits for work queued on the device."""

from types import SimpleNamespace

import pytest
import torch

from lit_illada.bench import plain
from lit_illada.bench.figure import seconds


@pytest.fixture
def waits(monkeypatch):
    """Records each synchronisation with the device; a CPU stands in for a GPU."""
    happened = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: happened.append("waited"))
    return happened


def test_timing_synchronises_device_at_both_ends(waits):
    assert seconds(lambda: waits.append("worked"), torch.device("cuda")) > 0
    assert waits == ["waited", "worked", "waited"]


def test_timing_on_cpu_does_not_synchronise(waits):
    seconds(lambda: waits.append("worked"), torch.device("cpu"))
    seconds(lambda: waits.append("worked"))
    assert waits == ["worked", "worked"]


def test_both_steps_of_plain_benchmark_are_synchronised(waits, monkeypatch):
    class Step:
        device = torch.device("cuda")

        def __call__(self, batch):
            waits.append("worked")

    batch = SimpleNamespace(input_ids=torch.zeros(2, 2))
    monkeypatch.setattr(plain, "prepare", lambda config: None)
    monkeypatch.setattr(plain, "both", lambda config, steps: (Step(), Step(), [batch]))
    assert plain.measure_model("nano", repeats=1, steps=1)["ratio"]["median"] > 0
    assert waits == ["waited", "worked", "waited"] * 4  # a warm-up of each, and a timing of each

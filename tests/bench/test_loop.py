"""The benchmark of the training loop runs on the configuration of the demo."""

import pytest

from lit_illada.bench import loop
from lit_illada.training.config.trainer import Accelerator


@pytest.mark.slow
def test_every_figure_is_present_and_both_loops_synchronise_at_both_ends(monkeypatch):
    clock, devices = loop.now, []
    monkeypatch.setattr(loop, "now", lambda device: devices.append(device) or clock(device))
    figures = loop.measure(repeats=1, steps=1)
    assert devices == [Accelerator.auto.resolve().device] * 4
    assert set(figures) == {"lightning_s_per_step", "bare_s_per_step", "ratio"}
    assert all(figure["min"] > 0 for figure in figures.values())

"""Measurement of the peak speed of matrix products."""

import pytest
import torch

from lit_illada.training import matmul_speed
from lit_illada.training.matmul_speed import matmul_flops_per_s

CPU = torch.device("cpu")


@pytest.mark.parametrize(("seconds", "num_timings"), [(0.1, 6), (0.4, 3), (9.0, 1)])
def test_a_slow_device_is_timed_less_often(monkeypatch, seconds, num_timings):
    clock = iter(range(1000))
    monkeypatch.setattr(matmul_speed.time, "perf_counter", lambda: seconds * next(clock))
    assert matmul_flops_per_s(CPU, torch.float32) == pytest.approx(2 * 2 * 1024**3 / seconds)
    assert next(clock) == 2 * num_timings


def test_the_peak_is_that_of_the_fastest_timing(monkeypatch):
    clock = iter([0, 0.3, 1, 1.2, 2, 2.4, 3, 3.3])
    monkeypatch.setattr(matmul_speed.time, "perf_counter", lambda: next(clock))
    assert matmul_flops_per_s(CPU, torch.float32) == pytest.approx(2 * 2 * 1024**3 / 0.2)

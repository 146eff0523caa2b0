"""The step of an adaptation beside the autoregressive step."""

import pytest

from lit_illada.bench.adapt import measure


@pytest.mark.slow  # three processes that import torch
def test_every_figure_is_present_and_matrix_products_are_a_fraction_of_the_step():
    figures = measure("pico", num_rows=2, row_length=32, repeats=1)
    timed = {"tokens_per_s", "mfu", "matmul_fraction"}
    memory = {"peak_gb", "resident_peak_gb", "estimated_peak_gb", "peak_over_estimate"}
    assert figures.keys() == {"adapt", "autoregressive", "adapt / autoregressive"}
    for name in ("adapt", "autoregressive"):
        assert timed <= figures[name].keys() <= timed | memory
        assert 0 < figures[name]["matmul_fraction"]["median"] < 1
    ratio = figures["adapt / autoregressive"]["tokens_per_s"]["median"]
    assert ratio == pytest.approx(
        figures["adapt"]["tokens_per_s"]["median"] / figures["autoregressive"]["tokens_per_s"]["median"]
    )

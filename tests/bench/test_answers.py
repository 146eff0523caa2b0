"""Ways of decoding of the benchmark `answers`, with the models of sweeps/loop_base."""

import pytest

from lit_illada.bench.answers import measure
from lit_illada.runtime.paths import sweeps_dir


@pytest.mark.slow
def test_every_way_is_measured_beside_its_twin():
    figures = measure(num_prompts=2, repeats=1)
    for way in ("plain", "fast", "autoregressive"):
        for batch in (1, 8, 32):
            cell = figures[way][f"batch_{batch}"]
            assert cell["tokens_per_s"]["median"] > 0
            assert cell["first_token_ms"]["median"] > 0
    assert figures["fast"]["batch_1"]["forwards_per_prompt"] < figures["plain"]["batch_1"]["forwards_per_prompt"]
    assert "fast_over_autoregressive_batch_32" in figures["ratios"]


@pytest.mark.slow
def test_a_run_without_a_twin_is_measured_alone():
    figures = measure(sweeps_dir() / "loop_base" / "diffusion", num_prompts=1, repeats=1)
    assert "autoregressive" not in figures
    assert set(figures["ratios"]) == {
        *(f"fast_over_plain_batch_{batch}" for batch in (1, 8, 32)),
        *(f"{way}_batch_{batch}_over_1" for way in ("plain", "fast") for batch in (8, 32)),
    }

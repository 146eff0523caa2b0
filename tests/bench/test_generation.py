import pytest

from lit_illada.bench.generation import measure


@pytest.mark.slow
def test_every_figure_is_present():
    figures = measure(repeats=1, num_prompts=3, training_steps=1)
    assert figures["threshold_dual_cache"].keys() == {
        "plain_accuracy", "fast_accuracy", "agreement", "fast_tokens_per_s", "plain_tokens_per_s", "ratio",
    }  # fmt: skip
    assert figures["batch_float32"]["agreement"] == 1
    assert figures["batch_bfloat16"]["ratio"]["median"] > 0

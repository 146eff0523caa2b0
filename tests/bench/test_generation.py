import pytest
import torch

from lit_illada.bench.generation import measure


@pytest.mark.slow
def test_every_figure_is_present():
    figures = measure(repeats=1, num_prompts=3, training_steps=1)
    assert figures["threshold_dual_cache"].keys() == {
        "plain_accuracy", "fast_accuracy", "agreement", "fast_tokens_per_s", "plain_tokens_per_s", "ratio",
    }  # fmt: skip
    assert figures["batch_float32"]["agreement"] == 1
    has_bfloat16 = any(has for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)
    assert figures["batch_bfloat16"].keys() >= ({"ratio"} if has_bfloat16 else {"did_not_run"})

"""Tokens and FLOPs that a run reports."""

import json

from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.model.config import ModelConfig, num_linear_parameters

STEPS, ROWS, LENGTH = 2, 8, 32


def reported_flops(overrides, folder):
    command = [
        "pretrain",
        *overrides,
        "data.isolate_documents=false",
        "data/shortening=none",
        f"trainer.max_steps={STEPS}",
        f"run_dir={folder}",
    ]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads((folder / "summary.json").read_text())["end"]["perf/flops"]


def test_complementary_masks_cost_two_rows_per_row_of_data_and_causal_attention_half_the_pairs(
    tiny_overrides, tmp_path
):
    linear = num_linear_parameters(ModelConfig(300, 32, 64, 2, 2, 1))
    tokens, head = ROWS * LENGTH, 32 * 300
    attention = 2 * 32 * 2  # multiplications a pair: queries times keys, weights times values, in 2 layers of width 32
    # every token is masked in one of its two copies
    complementary = 3 * 2 * (linear * 2 * tokens + attention * 2 * ROWS * LENGTH**2 + head * tokens)
    masks = ["objective=complementary"]
    assert reported_flops([*tiny_overrides, *masks], tmp_path / "complementary") == STEPS * complementary
    causal = 3 * 2 * (linear * tokens + attention * ROWS * LENGTH * (LENGTH + 1) // 2 + head * tokens)
    causal_model = ["objective=autoregressive", "model.is_causal=true"]
    assert reported_flops([*tiny_overrides, *causal_model], tmp_path / "causal") == STEPS * causal

"""Tokens and FLOPs that a run reports."""

import json
from types import SimpleNamespace

import torch
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.model.config import ModelConfig, num_linear_parameters
from lit_illada.training.callbacks.throughput import Throughput
from lit_illada.training.matmul_speed import matmul_flops_per_s

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


def test_the_peak_is_measured_on_the_ranks_own_device_once_and_not_before_training():
    measured = []
    throughput = Throughput(lambda *_: 0.0, lambda device: measured.append(device) or 1e9, every_steps=1)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 3)))
    assert not measured
    for _ in range(2):
        throughput.on_train_start(trainer, None)
    assert measured == [torch.device("cuda", 3)]


def test_measuring_the_peak_leaves_the_random_state_as_it_is():
    before = torch.random.get_rng_state()
    matmul_flops_per_s(torch.device("cpu"), torch.float32, timings=1)
    assert torch.equal(torch.random.get_rng_state(), before)

"""Pretraining of adapters only: an autoregressive run continues as a diffusion model, with annealed attention."""

import pytest
import torch
from click.testing import CliRunner

from lit_illada.checkpoints.open import open_checkpoint
from lit_illada.cli import main
from lit_illada.commands.training_run import check_hardware
from lit_illada.config import load
from lit_illada.errors import UserError
from lit_illada.training.checkpointing.files import latest_checkpoint
from lit_illada.training.checkpointing.reading import read_checkpoint


def lit_illada(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)


def weights(run):
    return read_checkpoint(latest_checkpoint(run / "checkpoints"))["state_dict"]


@pytest.fixture(scope="module")
def causal(tiny_overrides, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "causal"
    overrides = ["objective=autoregressive", "model.is_causal=true", "trainer.max_steps=2", f"run_dir={run}"]
    assert lit_illada("pretrain", *tiny_overrides, *overrides).exit_code == 0
    return run


@pytest.fixture
def adapt(causal, tiny_overrides):
    """Start a run of 6 steps from the causal one."""
    kept = [override for override in tiny_overrides if not override.startswith("model.")]
    choices = ["model.is_causal=false", "model.predicts_next=true", "adapter=lora", "adapter.rank=2"]
    annealed = ["objective=dream_cart", "objective.attention_annealing=0.5", "trainer.max_steps=6"]

    def start(run, *overrides):
        given = [*kept, *choices, *annealed, *overrides, f"run_dir={run}"]
        result = lit_illada("pretrain", "--init-from", causal, *given)
        assert result.exit_code == 0, result.output
        return run

    return start


def test_only_the_adapters_change_and_the_checkpoint_is_read_merged(causal, adapt, tmp_path):
    run = adapt(tmp_path / "run")
    before, after = weights(causal), weights(run)
    assert all(torch.equal(before[name], after[name]) for name in before)
    stem = "model.model.layers.0.self_attn.q_proj"
    update = after[f"{stem}.lora_b"] @ after[f"{stem}.lora_a"] * (32.0 / 2)
    assert update.abs().max() > 0
    opened = open_checkpoint(run)
    assert (opened.model.is_causal, opened.model.predicts_next) == (False, True)
    merged = opened.tensors["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(merged, before[f"{stem}.weight"] + update)


def test_a_resumed_run_trains_the_weights_of_an_uninterrupted_one(adapt, tmp_path):
    whole, halved = adapt(tmp_path / "whole"), adapt(tmp_path / "halved")
    for path in sorted((halved / "checkpoints").glob("step=*"))[1:]:
        path.unlink()
    assert latest_checkpoint(halved / "checkpoints").name == "step=00000003.ckpt"  # where the annealing ends
    (halved / "summary.json").unlink()
    result = lit_illada("pretrain", "--resume", halved)
    assert result.exit_code == 0, result.output
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(halved).items())


def test_adapters_without_a_checkpoint_are_refused(tiny_overrides, tmp_path):
    result = lit_illada("pretrain", *tiny_overrides, "adapter=lora", f"run_dir={tmp_path / 'run'}")
    assert result.exit_code == 1
    assert "adapter.name=lora freezes every other weight, which are random without init_from" in result.output
    assert not (tmp_path / "run").exists()


def test_a_segment_kernel_is_refused_before_a_run_with_annealing(tiny_overrides):
    overrides = [*tiny_overrides, "objective.attention_annealing=0.5", "model.attention=varlen"]
    with pytest.raises(UserError, match=r"model\.attention is varlen"):
        check_hardware(load("pretrain", overrides), 32)

"""experiment=adapt: an autoregressive checkpoint continues as a diffusion model."""

import pytest
import yaml
from click.testing import CliRunner

from lit_illada.checkpoints.start import load_pretrain
from lit_illada.cli import main


def lit_illada(*arguments):
    result = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def causal(tiny_overrides, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "causal"
    overrides = ["objective=autoregressive", "model.is_causal=true", "trainer.max_steps=2", f"run_dir={run}"]
    lit_illada("pretrain", *tiny_overrides, *overrides)
    return run


def test_the_experiment_sets_attention_shift_and_token_weight(causal, tiny_overrides, tmp_path):
    kept = [override for override in tiny_overrides if not override.startswith("model")]
    overrides = [*kept, "experiment=adapt", "trainer.max_steps=3", f"run_dir={tmp_path / 'run'}"]
    lit_illada("pretrain", "--init-from", causal, *overrides, "objective.attention_annealing=0.5")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    before = yaml.safe_load((causal / "config.yaml").read_text())["model"]
    assert config["model"] == {**before, "is_causal": False, "predicts_next": True}
    assert config["objective"]["token_weight"]["name"] == "cart"
    assert config["objective"]["weighting"]["name"] == "flat"
    assert config["objective"]["attention_annealing"] == 0.5
    lit_illada("generate", tmp_path / "run", "--prompt", "alpha", "generation.max_new_tokens=32")


def test_the_experiment_requires_a_checkpoint_or_an_explicit_null():
    result = CliRunner().invoke(main, ["pretrain", "experiment=adapt"])
    assert result.exit_code == 1
    assert "init_from has no value (???), but needs one: set init_from=…" in result.output
    assert load_pretrain(["experiment=adapt", "init_from=null"])[0].init_from is None


def test_without_the_experiment_the_model_stays_causal_and_overrides_come_first(causal):
    config, _ = load_pretrain([f"init_from={causal}", "objective=autoregressive"])
    assert config.model.is_causal
    config, _ = load_pretrain([f"init_from={causal}", "experiment=adapt", "model.predicts_next=false"])
    assert not config.model.is_causal
    assert not config.model.predicts_next

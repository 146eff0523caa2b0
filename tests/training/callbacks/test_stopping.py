"""Time limit of a run: it ends validated and saved, with readable progress."""

import json

from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.config import load_file
from lit_illada.training.checkpointing.files import latest_checkpoint
from lit_illada.training.checkpointing.reading import read_checkpoint


def pretrain(*overrides):
    return CliRunner().invoke(main, ["pretrain", *overrides], catch_exceptions=False)


def test_a_run_ends_after_its_time_limit_and_counts_as_finished(tiny_overrides, tmp_path):
    run = tmp_path / "run"
    result = pretrain(*tiny_overrides, f"run_dir={run}", "trainer.max_steps=100000", "trainer.max_time_s=1.5")
    assert result.exit_code == 0, result.output
    assert "resume with" not in result.output
    end = json.loads((run / "summary.json").read_text())["end"]
    assert 10 < end["step"] < 100000
    assert end["val/nll_bound"] > 0
    checkpoint = read_checkpoint(latest_checkpoint(run / "checkpoints"))
    assert checkpoint["global_step"] == end["step"]
    assert load_file("pretrain", run / "config.yaml").trainer.max_time_s == 1.5
    progress = json.loads((run / "progress.json").read_text())
    assert (progress["step"], progress["max_steps"], progress["begun_at_step"]) == (end["step"], 100000, 0)
    assert 1.5 <= progress["elapsed_s"] < 60
    assert progress["metrics"]["val/nll_bound"] == end["val/nll_bound"]


def test_a_limit_must_be_above_zero(tiny_overrides, tmp_path):
    result = pretrain(*tiny_overrides, f"run_dir={tmp_path / 'run'}", "trainer.max_time_s=0")
    assert result.exit_code == 1
    assert "trainer.max_time_s is 0.0: it must be above 0" in result.output

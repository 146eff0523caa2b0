"""Logging of curves to a CSV file and Weights & Biases, beside TensorBoard."""

import csv
import importlib.util
import time

import pytest
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.config import load
from lit_illada.errors import UserError
from lit_illada.training.checkpointing.files import checkpoints_by_step
from lit_illada.training.config.loggers import LoggerConfig, WandbConfig, WandbMode
from lit_illada.training.loggers import CsvCurves

has_wandb = importlib.util.find_spec("wandb") is not None


def pretrain(*words):
    result = CliRunner().invoke(main, ["pretrain", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def points(file):
    """(step, tag, value) of every point, without what a machine's speed decides."""
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    values = [(int(row["step"]), tag, value) for row in rows for tag, value in row.items() if value and tag != "step"]
    return [point for point in values if not point[1].startswith("perf/")]


def test_no_logger_one_or_several_can_be_selected():
    assert load("pretrain").logger == load("sft").logger == LoggerConfig()
    assert load("pretrain", ["logger=csv"]).logger == LoggerConfig(csv=True)
    assert load("pretrain", ["logger=[csv,wandb]"]).logger == LoggerConfig(csv=True, wandb=WandbConfig())
    online = load("pretrain", ["logger=wandb", "logger.wandb.mode=online", "logger.wandb.tags=[a,b]"]).logger.wandb
    assert online == WandbConfig(mode=WandbMode.online, tags=["a", "b"])
    with pytest.raises(UserError, match=r"logger 'cvs'.*did you mean 'csv'"):
        load("pretrain", ["logger=[cvs,wandb]"])
    with pytest.raises(UserError, match=r"logger\.wandb\.project is 'a/b'"):
        load("pretrain", ["logger=wandb", "logger.wandb.project=a/b"])


def test_the_csv_has_the_curves_and_a_resumed_run_continues_it(tiny_overrides, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        pretrain(*tiny_overrides, "logger=csv", "trainer.checkpoint_every_steps=4", f"run_dir={folder}")
    expected = points(whole / "metrics.csv")
    assert [step for step, tag, _ in expected if tag == "train/loss"] == [2, 4, 6, 8, 10, 12]
    assert [step for step, tag, _ in expected if tag == "val/nll_bound"] == [0, 6, 12]
    assert list(whole.glob("events.out.tfevents*"))  # TensorBoard's beside it
    # as a kill after step 11 leaves it, with later rows and half a line
    checkpoints_by_step(resumed / "checkpoints")[12].unlink()
    with (resumed / "metrics.csv").open("a") as file:
        file.write("11,0.5")
    pretrain("--resume", str(resumed))
    assert points(resumed / "metrics.csv") == expected


def test_new_columns_leave_earlier_rows_unchanged(tmp_path):
    curves = CsvCurves(tmp_path / "metrics.csv")
    curves.log_metrics({"a": 1.0}, 0)
    curves.log_metrics({"b": 2.0}, 1)
    CsvCurves(tmp_path / "metrics.csv").log_metrics({"a": 3.0, "b": 4.0}, 2)
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b\n0,1.0,\n1,,2.0\n2,3.0,4.0\n"


@pytest.mark.skipif(has_wandb, reason="wandb is installed")
def test_a_missing_wandb_is_reported_with_its_install_command(tiny_overrides, tmp_path):
    command = ["pretrain", *tiny_overrides, "logger=[csv,wandb]", f"run_dir={tmp_path / 'run'}"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert result.output == "Error: logger=wandb, but wandb is not installed: pip install 'lit-illada[wandb]'\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(not has_wandb, reason="wandb is not installed")
def test_wandb_logs_offline_beside_csv_and_a_resume_continues_its_run(tiny_overrides, tmp_path):
    run = tmp_path / "run"
    pretrain(*tiny_overrides, "logger=[csv,wandb]", f"run_dir={run}")
    run_id = (run / "wandb" / "run_id").read_text()
    (first,) = run.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb")
    # wandb's own process writes it, a little after the run has finished; its records are compressed
    end = time.monotonic() + 30
    while first.stat().st_size < 4000:
        assert time.monotonic() < end, first.stat().st_size
        time.sleep(0.1)
    assert "val/nll_bound" in (run / "metrics.csv").read_text()
    pretrain("--resume", str(run), "trainer.max_steps=14")
    assert (run / "wandb" / "run_id").read_text() == run_id
    assert len(list(run.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))) == 2

"""The choice of precision=auto on a CPU, and its record in a run."""

import logging

import pytest
import torch
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.config import load_file
from lit_illada.training.checkpointing.files import latest_checkpoint
from lit_illada.training.checkpointing.reading import read_checkpoint
from lit_illada.training.config import trainer
from lit_illada.training.config.trainer import Accelerator, Precision


@pytest.mark.parametrize(
    ("has_amx", "has_avx", "is_intel", "expected"),
    [
        (True, True, True, Precision.bf16_mixed),
        (False, True, True, Precision.float32),
        (False, True, False, Precision.bf16_mixed),
        (False, False, False, Precision.float32),
    ],
)
def test_auto_is_bfloat16_where_the_processor_multiplies_it_faster(monkeypatch, has_amx, has_avx, is_intel, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx)
    monkeypatch.setattr(trainer, "_is_intel", lambda: is_intel)
    trainer._is_bf16_faster_on_cpu.cache_clear()
    try:
        assert Precision.auto.resolve(Accelerator.cpu) is expected
        assert Precision.auto.resolve(Accelerator.gpu) is Precision.bf16_mixed
        assert Precision.float32.resolve(Accelerator.gpu) is Precision.float32
    finally:
        trainer._is_bf16_faster_on_cpu.cache_clear()


@pytest.mark.parametrize(
    ("first", "name"), [pytest.param(True, "bf16-mixed", marks=pytest.mark.slow), (False, "32-true")]
)
def test_a_run_keeps_the_precision_of_its_start_on_another_processor(
    monkeypatch, caplog, tiny_overrides, tmp_path, first, name
):
    """Resumed where the other precision is faster, it equals the uninterrupted run bit for bit."""
    caplog.set_level(logging.INFO)
    overrides = [*tiny_overrides, "trainer.accelerator=cpu", "trainer.precision=auto", "trainer.keep_checkpoints=100"]
    weights = {}
    for run in ("whole", "parts"):
        monkeypatch.setattr(trainer, "_is_bf16_faster_on_cpu", lambda: first)
        _pretrain(*overrides, f"run_dir={tmp_path / run}")
        assert f"trainer.precision=auto is {name} here, the faster one on this cpu" in caplog.messages
        if run == "parts":
            latest_checkpoint(tmp_path / run / "checkpoints").unlink()
            monkeypatch.setattr(trainer, "_is_bf16_faster_on_cpu", lambda: not first)
            _pretrain("--resume", str(tmp_path / run))
        assert load_file("pretrain", tmp_path / run / "config.yaml").trainer.precision == name
        weights[run] = read_checkpoint(latest_checkpoint(tmp_path / run / "checkpoints"))["state_dict"]
    assert all(torch.equal(weights["whole"][key], weights["parts"][key]) for key in weights["whole"])


def _pretrain(*arguments):
    assert CliRunner().invoke(main, ["pretrain", *arguments], catch_exceptions=False).exit_code == 0

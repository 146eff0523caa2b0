"""A run with a loss weight of the user's own file: trained, saved, resumed and used."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.runtime import plugins

PARTS = """
from dataclasses import dataclass
from lit_illada.objective.weighting import Weighting

@dataclass(frozen=True)
class Power(Weighting):
    power: float = 0.5

    def __call__(self, t):
        return t ** -self.power
"""
NAME = "objective.weighting.name=parts.py:Power"


def test_a_run_with_an_own_weight_is_trained_and_resumed_by_its_name(tiny_overrides, tmp_path, monkeypatch):
    def lit_illada(*words):
        monkeypatch.setattr(plugins, "_allowed", set())  # as in a process of its own
        return CliRunner().invoke(main, list(map(str, words)), catch_exceptions=False)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts.py").write_text(PARTS, encoding="utf-8")
    run, weight = tmp_path / "run", 'objective.weighting={name: "parts.py:Power", power: 0.25}'
    result = lit_illada("pretrain", *tiny_overrides, weight, f"run_dir={run}")
    assert result.exit_code == 0, result.output
    assert "parts.py:Power" in (run / "config.yaml").read_text(encoding="utf-8")
    refused = lit_illada("pretrain", "--resume", run, "trainer.max_steps=14")
    assert refused.exit_code == 1
    assert f"add {NAME} to the command" in refused.output
    resumed = lit_illada("pretrain", "--resume", run, "trainer.max_steps=14", NAME)
    assert resumed.exit_code == 0, resumed.output
    assert "power: 0.25" in (run / "config.yaml").read_text(encoding="utf-8")
    assert "has changed" not in resumed.output
    starts = [json.loads(line) for line in (run / "provenance.jsonl").read_text(encoding="utf-8").splitlines()]
    sha256 = hashlib.sha256(PARTS.encode()).hexdigest()
    assert [start["own_files"] for start in starts] == [{"parts.py:Power": sha256}] * 2
    used = lit_illada("generate", run, "--prompt", "alpha", "--no-live", "generation.max_new_tokens=8")
    assert used.exit_code == 0, used.output


@pytest.mark.slow
def test_a_changed_file_is_reported_when_the_run_is_resumed(tiny_overrides, tmp_path):
    def lit_illada(*words):
        command = [sys.executable, "-m", "lit_illada", *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False)

    parts = tmp_path / "parts.py"
    parts.write_text(PARTS, encoding="utf-8")
    result = lit_illada("pretrain", *tiny_overrides, NAME, "trainer.max_steps=3", "run_dir=run")
    assert result.returncode == 0, result.stderr
    parts.write_text(PARTS.replace("0.5", "0.75"), encoding="utf-8")
    result = lit_illada("pretrain", "--resume", "run", "trainer.max_steps=4", NAME)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "has changed" in line]
    assert line.startswith("parts.py:Power has changed since this run was last started (sha256 ")

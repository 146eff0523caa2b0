"""`launch align`: the job's command line, with the parts of a user that a saved config alone does not load."""

import json
import re
import shlex

import pytest
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.runtime import plugins
from lit_illada.runtime.paths import sweeps_dir

BASE = sweeps_dir() / "loop_base" / "diffusion"
SMALL = [
    "trainer.accelerator=cpu",
    "trainer.max_steps=1",
    "trainer.val_rows=2",
    "trainer.val_every_steps=1",
    "problems.num_train=8",
    "task.range.max_depth=1",
    "prompts_per_step=2",
    "alignment.group_size=2",
    "alignment.updates=1",
    "generation.max_new_tokens=16",
    "generation.block_length=16",
    "generation.num_steps=2",
]
TERM = """
from __future__ import annotations
from dataclasses import dataclass
from lit_illada.alignment.rewards import Term

@dataclass(frozen=True)
class Flat(Term):
    def __call__(self, answered, check):
        return 1.0
"""


@pytest.fixture
def lit_illada(tmp_path, monkeypatch):
    def lit_illada(*words):
        monkeypatch.setattr(plugins, "_allowed", set())  # as in a process of its own
        return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)

    monkeypatch.chdir(tmp_path)
    return lit_illada


def test_a_job_that_aligns_requests_the_devices_of_its_trainer(lit_illada):
    result = lit_illada("launch", "align", BASE, *SMALL[1:], "--gpus-per-node", "2", "--dry-run", "run_dir=runs/own")
    assert result.exit_code == 0, result.output
    assert "#SBATCH --ntasks-per-node=2" in result.output
    assert re.search(r"^srun .* align --resume \S+/runs/own$", result.output, re.MULTILINE)
    assert "nothing to align" in lit_illada("launch", "align", "--dry-run").output


def test_a_job_with_a_users_reward_and_task_starts_from_the_saved_config(lit_illada, tmp_path, monkeypatch):
    (tmp_path / "terms.py").write_text(TERM, encoding="utf-8")
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 7\n", encoding="utf-8")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    listed = '{term: {name: "terms.py:Flat"}, weight: 0.5}, {term: {name: format, pattern: "it\'s"}}'
    terms = f"alignment.reward.terms=[{listed}]"
    result = lit_illada("launch", "align", BASE, *SMALL, terms, "run_dir=run")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in (tmp_path / "run" / "launch.sh").read_text().splitlines() if line.startswith("srun ")]
    words = shlex.split(line)
    words = words[words.index("align") :]
    assert lit_illada(*words[:3]).exit_code == 1, "the saved config alone loads no class of a user"
    job = lit_illada(*words)
    assert job.exit_code == 0, job.output
    end = json.loads((tmp_path / "run" / "summary.json").read_text())["end"]
    assert end["rollout/reward"] == 0.5

"""Two ranks, one of whose groups has equal rewards: every rank takes part in every collective operation."""

import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_illada import build
from lit_illada.cli import main
from lit_illada.config import load
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.runtime.paths import sweeps_dir
from lit_illada.training.checkpointing.files import latest_checkpoint
from lit_illada.training.checkpointing.reading import map_leaves, read_checkpoint
from lit_illada.training.checkpointing.sharded import StoredTensor

BASE = sweeps_dir() / "loop_base" / "diffusion"
SMALL = [
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_steps=1",
    "trainer.micro_batch_rows=4",
    "trainer.val_rows=2",
    "optim.gradient_clip_norm=null",
    "task.range.max_depth=1",
    "problems.num_train=20",
    "alignment.group_size=4",
    "prompts_per_step=2",
    "generation.max_new_tokens=16",
    "generation.block_length=16",
    "generation.num_steps=4",
    "generation.temperature=3",  # the completions of a prompt differ
]
TERM = """
from __future__ import annotations
from dataclasses import dataclass
from lit_illada.alignment.rewards import Term

@dataclass(frozen=True)
class Second(Term):
    def __call__(self, answered, check):
        varied = sum(map(ord, answered.text)) % 7
        return 0.0 if answered.problem.question == {first!r} else varied
"""
GDPO, CJ_GRPO = ["alignment=gdpo", "alignment.only_mixed_groups=true"], ["alignment=cj_grpo"]
OWN_SCORES = ["alignment/regulariser=none", "alignment.updates=1"]  # only completions with an advantage are scored
SPREADS = {
    "ddp": [*GDPO, *OWN_SCORES, "trainer.devices=2"],
    # sharded, ranks whose completions have different numbers of steps must run equally many passes
    "fsdp": [*CJ_GRPO, *OWN_SCORES, "trainer.devices=2", "trainer.parallel.strategy=fsdp"],
}


@pytest.fixture(scope="module")
def first_question():
    """Question of the first prompt of the first rollout."""
    config = load("align", SMALL).resolve()
    datamodule = build.build_align_datamodule(config, Tokenizer.load(BASE / "tokenizer"))
    return datamodule.prompt_at(0).problem.question


def gradient(run):
    """The gradient of the only step by parameter, times 1 − beta1: AdamW's first moment. Parts of ranks are joined."""
    content = read_checkpoint(latest_checkpoint(run / "checkpoints"))
    whole = map_leaves(content, lambda _, leaf: leaf[...] if isinstance(leaf, StoredTensor) else leaf)
    return {name: state["exp_avg"] for name, state in whole["optimizer_states"][0]["state"].items()}


def flat_groups(run):
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return [event.value for event in events.Scalars("rollout/flat_groups")]


@pytest.mark.slow
@pytest.mark.parametrize("spread", SPREADS)
def test_the_gradient_of_a_flat_and_a_mixed_rank_is_that_of_one_process(spread, first_question, tmp_path):
    term = tmp_path / "term.py"
    term.write_text(TERM.format(first=first_question), encoding="utf-8")
    settings = [*SMALL, *SPREADS[spread], f"alignment.reward.terms=[{{term: {{name: '{term}:Second'}}}}]"]
    one, two = tmp_path / "one", tmp_path / "two"
    alone = ["trainer.devices=1", "trainer.parallel.strategy=auto", f"run_dir={one}"]
    result = CliRunner().invoke(main, ["align", str(BASE), *settings, *alone], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    line = [sys.executable, "-m", "lit_illada", "align", str(BASE), *settings, f"run_dir={two}"]
    done = subprocess.run(line, capture_output=True, text=True, env=dict(os.environ), check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert flat_groups(one) == flat_groups(two) == [0.5]
    if spread == "ddp":  # sharded, the flat rank runs as many passes as the other
        seen = [read_checkpoint(latest_checkpoint(run / "checkpoints"))["tokens_seen"] for run in (one, two)]
        assert seen[0] == seen[1] > 0
    expected, other = gradient(one), gradient(two)
    torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-6)
    assert all(values.abs().max() > 1e-3 for values in expected.values())

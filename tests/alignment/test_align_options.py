"""Alignment runs with averages, bfloat16, moving references, common masks and rollbacks, and what they print."""

import io
import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_illada.cli import main
from lit_illada.runtime.console import Console
from lit_illada.runtime.paths import sweeps_dir
from lit_illada.training.callbacks import progress
from lit_illada.training.checkpointing.files import latest_checkpoint
from lit_illada.training.checkpointing.reading import read_checkpoint

BASE = sweeps_dir() / "loop_base" / "diffusion"
SMALL = [
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_steps=2",
    "trainer.micro_batch_rows=8",
    "trainer.val_every_steps=2",
    "trainer.checkpoint_every_steps=1",
    "trainer.keep_checkpoints=10",
    "trainer.log_every_steps=1",
    "trainer.val_rows=2",
    "optim.optimizer.learning_rate=1e-3",
    "task.range.max_depth=1",
    "problems.num_train=20",
    "alignment.group_size=4",
    "alignment.updates=1",
    "alignment.estimator.num_pairs=1",
    "prompts_per_step=2",
    "generation.max_new_tokens=16",
    "generation.block_length=16",
    "generation.num_steps=4",
    "alignment.reward.terms=[{term: correct}, {term: length}, {term: ngram_repetition}]",
]


@pytest.fixture
def align(tmp_path):
    """Align the base model in a folder of the test; returns the output."""

    def align(name, *overrides, base=BASE, exit_code=0):
        words = ["--resume", tmp_path / name] if base is None else [base, *SMALL, f"run_dir={tmp_path / name}"]
        result = CliRunner().invoke(main, ["align", *map(str, words), *overrides], catch_exceptions=False)
        assert result.exit_code == exit_code, result.output
        return result.output

    return align


def state(run, step=None):
    folder = Path(run) / "checkpoints"
    return read_checkpoint(latest_checkpoint(folder) if step is None else folder / f"step={step:08d}.ckpt")


def curve(run, tag):
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


def test_an_average_of_the_weights_is_validated_and_resumes_to_the_bit(align, tmp_path):
    averaged = "trainer.ema_decay=0.5"
    align("whole", averaged)
    align("part", averaged, "trainer.max_steps=1")
    align("part", "trainer.max_steps=2", base=None)
    whole, part = state(tmp_path / "whole"), state(tmp_path / "part")
    assert all(torch.equal(value, part["state_dict"][name]) for name, value in whole["state_dict"].items())
    current = {key: value for key, value in whole.items() if key.endswith("current_model_state") or "current" in key}
    assert current, "the weights that are trained on are saved beside their average"


def test_a_run_is_not_resumed_within_a_rollout_with_other_masks(align, tmp_path):
    align("run", "alignment.updates=2", "trainer.max_steps=1")
    record = (tmp_path / "run" / "config.yaml").read_text()
    output = align("run", "trainer.max_steps=2", "alignment.masked_prompt=0.15", base=None, exit_code=1)
    assert "step 1 lies within a rollout" in re.sub(r"\s+", " ", output)
    assert "alignment.masked_prompt was 0.0 and would be 0.15" in re.sub(r"\s+", " ", output)
    assert (tmp_path / "run" / "config.yaml").read_text() == record


@pytest.mark.slow  # a CPU without bfloat16 instructions emulates it
def test_in_bfloat16_the_first_ratio_is_one_and_the_reference_agrees(align, tmp_path):
    align("run", "trainer.precision=bf16-mixed")
    assert curve(tmp_path / "run", "train/log_ratio")[0] == 0
    assert curve(tmp_path / "run", "train/kl")[0] == 0
    assert all(torch.isfinite(value).all() for value in state(tmp_path / "run")["state_dict"].values())


def test_a_reference_that_follows_every_rollout_is_the_policy_at_its_start(align, tmp_path):
    align("fixed")
    align("following", "alignment.reference_every=1")
    fixed, following = (curve(tmp_path / name, "train/kl") for name in ("fixed", "following"))
    assert fixed[0] == following[0] == following[1] == 0
    assert fixed[1] != 0
    before, after = state(tmp_path / "following", 1)["state_dict"], state(tmp_path / "following", 2)["state_dict"]
    copies = [name for name in after if name.startswith("reference.")]
    assert copies
    for copy in copies:
        assert torch.equal(after[copy], before[copy.replace("reference.", "model.").replace("/", ".")])


def test_common_masks_of_a_group_change_the_updates_only(align, tmp_path):
    align("own", "trainer.max_steps=1")
    align("common", "trainer.max_steps=1", "alignment.share_noise=true")
    own, common = tmp_path / "own", tmp_path / "common"
    assert curve(own, "rollout/reward") == curve(common, "rollout/reward")
    assert curve(own, "train/score") != curve(common, "train/score")


FORM = """
from __future__ import annotations
from dataclasses import dataclass
from lit_illada.alignment.forms import Reinforce

calls = []

@dataclass(frozen=True)
class Breaks(Reinforce):
    def __call__(self, score_DSU, anchor_DSU, advantage_S1):
        calls.append(1)
        return super().__call__(score_DSU, anchor_DSU, advantage_S1) * (float("nan") if len(calls) == 3 else 1)
"""


def test_a_divergence_returns_to_the_last_checkpoint_with_a_lower_rate(align, tmp_path):
    file = tmp_path / "form.py"
    file.write_text(FORM, encoding="utf-8")
    align(
        "run",
        f"alignment.form={{name: '{file}:Breaks'}}",
        "trainer.max_steps=4",
        "trainer.on_divergence={name: rollback, max_spike_steps: null, steps_back: 2}",
        "trainer.max_nonfinite_steps=1",
    )
    (record,) = [json.loads(line) for line in (tmp_path / "run" / "rollbacks.jsonl").read_text().splitlines()]
    assert record["to_step"] <= 2
    assert record["learning_rate"][1] < record["learning_rate"][0]
    end = json.loads((tmp_path / "run" / "summary.json").read_text())["end"]
    assert end["step"] == 4
    assert state(tmp_path / "run")["alignment"]["num_completions"] == 4 * 8


def test_the_progress_bar_tells_rollout_from_update(align, monkeypatch):
    """The bar of a terminal, read as it is drawn."""
    shown, screen = [], io.StringIO()
    monkeypatch.setattr("lit_illada.commands.align.Console", lambda **_: Console(file=screen, force_terminal=True))
    describe = progress.ProgressBar.describe

    def drawn(self, phase):
        describe(self, phase)
        if hasattr(self, "_task"):
            screen.seek(0)
            screen.truncate()
            self._bar.refresh()
            shown.append(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).split()[0])

    monkeypatch.setattr(progress.ProgressBar, "describe", drawn)
    align("run", "alignment.updates=2")
    rollout = ["rollout", "rewards", "scoring", "update"]
    assert shown[:4] == rollout


def test_the_end_shows_accuracy_its_change_and_where_the_texts_are(align, tmp_path):
    output = re.sub(r"\s+", " ", align("run"))
    for row in ("accuracy, held-out", "change, paired", "loops or no end", "tokens", "forward passes"):
        assert row in output
    assert f"answers {tmp_path / 'run' / 'answers.jsonl'}" in output
    assert f"samples {tmp_path / 'run' / 'samples.txt'}" in output
    assert "resume with" not in output


def test_a_model_that_solves_everything_is_told_at_once(align, caplog):
    align("run", "trainer.max_steps=1", "alignment.reward.terms=[{term: {name: format, pattern: '.*'}}]")
    assert "all 8 completions have reward 1, so the rewards give no gradient: choose easier or harder" in caplog.text


TASKS = """
from dataclasses import dataclass
from lit_illada.alignment.rewards import Term
from lit_illada.tasks.arithmetic import Arithmetic
from lit_illada.tasks.base import Verdict

@dataclass(frozen=True)
class Wrong(Arithmetic):
    def check(self, problem, completion):
        return Verdict.wrong(None, "never right")

@dataclass(frozen=True)
class Raises(Arithmetic):
    def check(self, problem, completion):
        raise RuntimeError("no verdict today")

@dataclass(frozen=True)
class Varied(Term):
    def __call__(self, answered, check):
        return sum(map(ord, answered.text)) % 5
"""


@pytest.fixture
def own(tmp_path):
    """The class of this name in a user's file."""
    file = tmp_path / "tasks.py"
    file.write_text(TASKS, encoding="utf-8")
    return lambda name: f"'{file}:{name}'"


def test_a_start_without_a_right_answer_is_reported_though_another_reward_varies(align, own, caplog):
    terms = f"alignment.reward.terms=[{{term: correct}}, {{term: {{name: {own('Varied')}}}}}]"
    align("run", f"task.name={own('Wrong')}", terms, "trainer.max_steps=1")
    assert "all 8 completions have reward_correct 0, so only the other rewards give a gradient" in caplog.text


def test_a_check_that_raises_is_shown_with_its_reason_or_ends_the_first_validation(align, own, tmp_path, caplog):
    align("run", f"task.name={own('Raises')}", "trainer.max_steps=1")
    assert "reward correct, completion 0: raises RuntimeError: no verdict today; failures count 0" in caplog.text
    output = align("other", f"task.name={own('Raises')}", "alignment.reward.on_failure=stop", exit_code=1)
    assert "reward correct, completion 0: raises RuntimeError: no verdict today: fix the term" in output
    assert not (tmp_path / "other" / "samples.txt").exists()


def test_sampler_and_learner_agree_without_a_cache(align, tmp_path):
    align("run", "trainer.max_steps=1")
    values = curve(tmp_path / "run", "val/mismatch")
    assert len(values) == 2
    assert values == pytest.approx([0, 0], abs=1e-4)


def test_confidences_without_stop_tokens_are_not_compared_with_the_learner(align, tmp_path):
    align("run", "generation.zero_stop_confidence=true", "trainer.max_steps=1")
    end = json.loads((tmp_path / "run" / "summary.json").read_text())["end"]
    assert "val/accuracy" in end
    assert "val/mismatch" not in end


@pytest.mark.parametrize(("form", "has_kl"), [("clip", True), ("reinforce", False)])
def test_the_distance_from_the_policy_of_the_rollout_is_logged_where_its_scores_exist(
    form, has_kl, align, own, tmp_path
):
    method = [f"alignment/form={form}", "alignment/regulariser=none", "alignment.updates=2"]
    align("run", *method, f"alignment.reward.terms=[{{term: {{name: {own('Varied')}}}}}]")
    end = json.loads((tmp_path / "run" / "summary.json").read_text())["end"]
    assert "train/kl" not in end
    assert ("train/kl_old" in end) == has_kl
    assert end.get("train/kl_old", 1) > 0


def test_the_example_with_re_checks_is_fine_tuned_and_aligned(tmp_path):
    tuned, aligned = tmp_path / "tuned", tmp_path / "aligned"
    tune = [
        "experiment=sft/recheck",
        "trainer.max_steps=1",
        "optim.schedule.warmup_steps=0",
        "trainer.batch_rows=4",
        "trainer.val_rows=2",
    ]
    tune += ["sft_data.source.num_train=20", "trainer.micro_batch_rows=4", "evaluation.num_examples=0"]
    small = ["trainer.max_steps=2", "trainer.batch_rows=8", "trainer.val_rows=2", "prompts_per_step=1"]
    small += ["problems.num_train=20", "trainer.micro_batch_rows=8", "trainer.log_every_steps=1"]
    for command in (
        ["sft", str(BASE), *tune, f"run_dir={tuned}"],
        [
            "align",
            str(tuned),
            "experiment=align/recheck",
            "optim.schedule.warmup_steps=0",
            *small,
            f"run_dir={aligned}",
        ],
    ):
        result = CliRunner().invoke(main, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    rewards = {name: curve(aligned, f"rollout/reward{name}")[0] for name in ("", "_correct", "_loop", "_finished")}
    assert rewards[""] == pytest.approx(rewards["_correct"] + 0.5 * rewards["_loop"] + 0.5 * rewards["_finished"]), (
        "the weighted sum of the terms"
    )

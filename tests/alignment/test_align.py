"""Alignment runs from the command line."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_illada import build
from lit_illada.alignment.config import Normaliser
from lit_illada.alignment.estimators import Elbo
from lit_illada.alignment.forms import Anchor
from lit_illada.alignment.regularisers import NoRegulariser
from lit_illada.cli import main
from lit_illada.config import load, load_file
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.runtime.paths import conf_dir
from lit_illada.training.checkpointing.files import latest_checkpoint
from lit_illada.training.checkpointing.reading import read_checkpoint

TUNE = [
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_steps=60",
    "trainer.batch_rows=16",
    "trainer.micro_batch_rows=16",
    "trainer.val_every_steps=60",
    "trainer.checkpoint_every_steps=60",
    "trainer.val_rows=4",
    "trainer.val_draws=1",
    "optim=muon_small",
    "sft_data/rows=llada_any_canvas",
    "objective=simple",
    "sft_data.source.num_train=256",
    "sft_data.source.num_validation=16",
    "sft_data.source.num_harder=16",
    "sft_data.source.easy.max_depth=1",
    "sft_data.source.recheck_fraction=0",
    "evaluation.num_examples=0",
    "sft_data.row_length=128",
]
SMALL = [
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_steps=4",
    "trainer.micro_batch_rows=4",
    "trainer.val_every_steps=2",
    "trainer.checkpoint_every_steps=1",
    "trainer.keep_checkpoints=10",
    "trainer.log_every_steps=1",
    "trainer.val_rows=6",
    "optim.optimizer.learning_rate=1e-3",
    "task.range.max_depth=1",
    "problems.num_train=20",
    "alignment.group_size=4",
    "alignment.updates=2",
    "prompts_per_step=2",
    "generation.max_new_tokens=24",
    "generation.block_length=12",
    "generation.num_steps=6",
    # mixed rewards whatever the model has learnt
    "alignment.reward.terms=[{term: correct, weight: 1.0}, {term: length, weight: 0.5}, {term: ngram_repetition}]",
]


def lit_illada(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def weights(run):
    return read_checkpoint(latest_checkpoint(Path(run) / "checkpoints"))["state_dict"]


@pytest.fixture(scope="session")
def tuned(tiny_overrides, tmp_path_factory):
    """A tiny model that knows the format of the arithmetic."""
    folder = tmp_path_factory.mktemp("runs")
    short = ["trainer.max_steps=2", "trainer.val_every_steps=2", "model.max_position_embeddings=512"]
    assert lit_illada("pretrain", *tiny_overrides, *short, f"run_dir={folder / 'base'}").exit_code == 0
    result = lit_illada("sft", folder / "base", *TUNE, f"run_dir={folder / 'tuned'}")
    assert result.exit_code == 0, result.output
    return folder / "tuned"


@pytest.fixture(scope="module")
def aligned(tuned):
    run = tuned.parent / "aligned"
    result = lit_illada("align", tuned, *SMALL, f"run_dir={run}")
    assert result.exit_code == 0, result.output
    return run


def test_a_run_aligns_its_base_and_writes_curves_answers_and_samples(tuned, aligned):
    end = json.loads((aligned / "summary.json").read_text())["end"]
    for tag in ("rollout/reward", "rollout/reward_correct", "train/loss", "val/accuracy", "val/accuracy_change"):
        assert tag in end
    before, after = weights(tuned), weights(aligned)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_mixture_of_tasks_is_aligned_and_its_accuracy_reported_by_task(tuned, tmp_path):
    sums = "{task: {name: arithmetic, range: {max_depth: 1}}}"
    games = "{task: {name: countdown, wording: '{question}', num_numbers: [2], max_number: 20}}"
    settings = [setting for setting in SMALL if not setting.startswith(("task.", "trainer.max_steps"))]
    run = tmp_path / "run"
    mixture = f"task={{name: mixture, parts: [{sums}, {games}]}}"
    result = lit_illada("align", tuned, *settings, mixture, "trainer.max_steps=2", f"run_dir={run}")
    assert result.exit_code == 0, result.output
    end = json.loads((run / "summary.json").read_text())["end"]
    by_part = [end["val/accuracy_part_1"], end["val/accuracy_part_2"]]
    assert end["val/accuracy"] == pytest.approx(sum(by_part) / 2)
    assert "part 2" in result.output


def curves(run):
    """(step, value) by tag, without measured times."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = [
        tag for tag in events.Tags()["scalars"] if not tag.startswith("perf/") or "passes" in tag or "forwards" in tag
    ]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def test_a_limit_of_forward_passes_ends_the_run_at_the_nearest_rollout(tuned, aligned, tmp_path):
    (first, after_first), _ = curves(aligned)["perf/forwards"]
    assert first == 2
    run = tmp_path / "run"
    for _ in range(2):  # the second time resumes a run that is over
        limited = [*SMALL, "trainer.max_steps=100", f"max_forwards={1.4 * after_first}", f"run_dir={run}"]
        result = lit_illada("align", "--resume", run) if run.exists() else lit_illada("align", tuned, *limited)
        assert result.exit_code == 0, result.output
        end = json.loads((run / "summary.json").read_text())["end"]
        assert (end["step"], end["perf/forwards"]) == (2, after_first)
        assert json.loads((run / "progress.json").read_text())["max_steps"] == 2
        ends = [read_checkpoint(folder / "checkpoints" / "step=00000002.ckpt") for folder in (run, aligned)]
        assert all(torch.equal(value, ends[1]["state_dict"][name]) for name, value in ends[0]["state_dict"].items())


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_resumed_run_equals_an_undisturbed_one_to_the_bit(step, aligned, tmp_path):
    """From within a rollout (steps 1 and 3) and between two, also without the base."""
    run = tmp_path / "run"
    shutil.copytree(aligned, run)
    for later in range(step + 1, 5):
        (run / "checkpoints" / f"step={later:08}.ckpt").unlink()
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(aligned.parent), str(tmp_path / "gone")))
    result = lit_illada("align", "--resume", run)
    assert result.exit_code == 0, result.output
    expected, resumed = weights(aligned), weights(run)
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert curves(run) == curves(aligned)
    for name in ("answers.jsonl", "samples.txt"):
        assert (run / name).read_text() == (aligned / name).read_text()


@pytest.mark.parametrize(
    "changed", [["trainer.micro_batch_rows=8"], ["rollout_rows=3"], ["alignment.recompute_views=true"]], ids=str
)
def test_micro_batches_change_only_the_rounding(changed, tuned, aligned, tmp_path):
    run = tmp_path / "run"
    result = lit_illada("align", tuned, *SMALL, *changed, f"run_dir={run}")
    assert result.exit_code == 0, result.output
    expected, other = weights(aligned), weights(run)
    for name in expected:
        torch.testing.assert_close(other[name], expected[name], rtol=1e-4, atol=1e-5)
    assert (run / "samples.txt").read_text() == (aligned / "samples.txt").read_text()


def test_held_out_problems_are_never_trained_on(aligned):
    config = load_file("align", aligned / "config.yaml").resolve()
    datamodule = build.build_align_datamodule(config, Tokenizer.load(aligned / "tokenizer"))
    trained = {prompt.text for prompt in datamodule.prompts.train}
    held_out = {prompt.text for prompt in datamodule.prompts.held_out}
    assert len(held_out) == 6
    assert not trained & held_out
    answered = {json.loads(line)["prompt"] for line in (aligned / "answers.jsonl").open()}
    assert answered == held_out


def test_the_stream_of_prompts_is_a_function_of_the_position(aligned):
    config = load_file("align", aligned / "config.yaml").resolve()
    datamodule = build.build_align_datamodule(config, Tokenizer.load(aligned / "tokenizer"))
    first, second = ([datamodule.prompt_at(at).text for at in range(20 * n, 20 * n + 20)] for n in (0, 1))
    assert sorted(first) == sorted(second)  # every pass uses every prompt
    assert first != second
    # whatever the number of ranks, a rollout has the same prompts, and a rank whole groups
    for world_size in (1, 2):
        batches = [
            datamodule.batch_at(list(range(start + rank, start + 8, world_size)), rank, world_size)
            for start in (0, 8, 16)
            for rank in range(world_size)
        ]
        assert [batch.update for batch in batches] == [n for n in (0, 1, 0) for _ in range(world_size)]
        positions = [position for batch in batches for position in batch.groups]
        assert positions == [0, 1, 0, 1, 2, 3]
        assert all(batch.index.tolist() == list(range(8 // world_size)) for batch in batches)


def test_samples_are_written_with_their_rewards(aligned):
    text = (aligned / "samples.txt").read_text()
    assert text.count("(reward ") == 8  # one prompt's completions at steps 0 and 2
    assert "correct" in text
    events = EventAccumulator(str(aligned), size_guidance={"tensors": 0})
    events.Reload()
    assert {"rollout/completion_0/text_summary", "answers/problem_0/text_summary"} <= set(events.Tags()["tensors"])


def test_every_tag_of_the_guide_is_logged(aligned):
    guide = Path(build.__file__).parents[1] / "alignment" / "README.md"
    rows = re.findall(r"(?m)^\| (`[a-z]+/[^|]*) \|", guide.read_text(encoding="utf-8"))
    tags = {tag for row in rows for tag in re.findall(r"`((?:val|rollout|train|perf)/[^`]+)`", row)}
    assert len(tags) > 12
    named = {tag.replace("TERM", "correct").replace("PHASE", "rollout") for tag in tags}
    assert named <= set(curves(aligned))


def test_groups_without_variance_are_reported_at_once_and_change_nothing(tuned, tmp_path, caplog):
    run = tmp_path / "run"
    # an impossible format: every completion has reward 0
    flat = ["alignment=gdpo", "alignment.reward.terms=[{term: {name: format, pattern: never}}]"]
    still = ["optim.optimizer.weight_decay=0", "trainer.max_steps=2"]
    result = lit_illada("align", tuned, *SMALL, *flat, *still, f"run_dir={run}")
    assert result.exit_code == 0, result.output
    assert "all 8 completions have reward 0" in caplog.text
    assert curves(run)["rollout/flat_groups"] == [(0, 1.0)]
    # 3 nodes, 2 updates, and only one completion of each micro-batch of four
    assert curves(run)["perf/passes_update"] == [(2, 3 * 2 / 4)]
    before, after = weights(tuned), weights(run)
    assert all(torch.equal(before[name], after[name]) for name in before)
    result = lit_illada("align", tuned, *SMALL, *flat, "trainer.max_steps=40", f"run_dir={tmp_path / 'long'}")
    assert result.exit_code == 1
    assert "10 rollouts in a row were without effect" in result.output.splitlines()[-1]


PRESETS = sorted(path.stem for path in (conf_dir() / "alignment").glob("*.yaml") if path.stem != "vrpo")


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_two_rollouts(name, tuned, tmp_path):
    run = tmp_path / "run"
    short = ["alignment.updates=1", "trainer.max_steps=2"]
    if name == "spg":
        short.append("alignment.estimator.block_length=12")  # the rollout's
    result = lit_illada("align", tuned, *SMALL, f"alignment={name}", *short, f"run_dir={run}")
    assert result.exit_code == 0, result.output
    of_step = dict(curves(run)["train/loss"])
    config = load_file("align", run / "config.yaml").alignment
    # step n trains on the rollout made at step n - 1, of which no completion counts if no group is mixed
    flat = {step + 1 for step, fraction in curves(run)["rollout/flat_groups"] if fraction == 1}
    assert set(of_step) == {1, 2} - (flat if config.only_mixed_groups else set())
    is_mean = config.normaliser is Normaliser.SEQUENCES and not config.only_mixed_groups
    if config.form.anchor is Anchor.OLD and is_mean:
        assert abs(of_step[1]) < 1e-5  # ratio 1 and advantages of mean 0
    assert all(torch.isfinite(value).all() for value in weights(run).values())


def test_updates_on_stored_scores_resume_within_a_rollout(tuned, tmp_path):
    """Fresh masks for every update: the frozen policies are scored under all of them before the first."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    fresh = ["alignment=d1", "alignment.updates=2", "trainer.max_steps=2"]
    assert lit_illada("align", tuned, *SMALL, *fresh, f"run_dir={whole}").exit_code == 0
    shutil.copytree(whole, run)
    (run / "checkpoints" / "step=00000002.ckpt").unlink()
    assert lit_illada("align", "--resume", run).exit_code == 0
    expected, resumed = weights(whole), weights(run)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    first, second = (value for _, value in curves(whole)["train/log_ratio"])
    assert first == 0
    assert second != 0
    assert curves(whole)["train/kl"][0] == (1, 0.0)  # the policy is still the reference
    assert [value > 0 for _, value in curves(whole)["train/kl_old"]] == [False, True]
    assert curves(whole)["perf/passes_scoring"] == [(2, 3.0)]  # the reference twice, the rollout policy once
    assert curves(whole)["perf/passes_update"] == [(2, 2.0)]


def test_lora_trains_adapters_and_refers_to_the_base_without_them(tuned, tmp_path):
    run = tmp_path / "run"
    adapted = ["adapter=lora", "adapter.rank=2", "trainer.max_steps=2"]
    result = lit_illada("align", tuned, *SMALL, *adapted, f"run_dir={run}")
    assert result.exit_code == 0, result.output
    before, after = weights(tuned), weights(run)
    assert all(torch.equal(before[name], after[name]) for name in before)
    reference = [name for name in after if name.startswith("reference.")]
    assert reference
    assert all(name.endswith(("lora_a", "lora_b")) for name in reference)
    assert all(not after[name].any() for name in reference if name.endswith("lora_b"))
    assert any(after[name].any() for name in after if name.startswith("model.") and name.endswith("lora_b"))
    assert lit_illada("generate", run, "--prompt", "1", "generation.max_new_tokens=32").exit_code == 0


@pytest.fixture
def pairs(tmp_path):
    file = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"a={n}+1\nx mod 2?", "chosen": str(n % 2), "rejected": f"{n} or more"} for n in range(60)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_pairs_are_aligned_offline_from_a_loss_of_log_two(pairs, tuned, tmp_path):
    run = tmp_path / "run"
    offline = ["alignment=vrpo", "alignment.group_size=2", "alignment.updates=1", f"preferences={pairs}"]
    result = lit_illada("align", tuned, *SMALL, *offline, "trainer.max_steps=6", f"run_dir={run}")
    assert result.exit_code == 0, result.output
    losses = [value for _, value in curves(run)["train/loss"]]
    assert losses[0] == torch.tensor(2.0).log().item()
    assert losses[-1] < losses[0]
    margins = dict(curves(run)["val/margin"])
    assert margins[0] == 0
    assert margins[6] > 0
    assert not [tag for tag in curves(run) if tag.startswith("rollout/")]
    figures = json.loads((run / "summary.json").read_text())
    start, end = figures["start"], figures["end"]
    assert start["val/accuracy"] == 0.5, "the policy is the reference, so no pair has a preference"
    assert "val/accuracy_low" not in start
    assert end["val/accuracy_low"] < end["val/accuracy"] <= end["val/accuracy_high"] <= 1
    assert not [name for name in end if "accuracy_change" in name]
    assert "50.0%" in result.output
    assert "margin of the chosen answer" in result.output
    for name in ("answers", "samples", "change, paired"):
        assert name not in result.output


TERMS = """
from __future__ import annotations
from dataclasses import dataclass
from lit_illada.alignment.rewards import Term

@dataclass(frozen=True)
class Raises(Term):
    def __call__(self, answered, check):
        raise RuntimeError("no reward today")

@dataclass(frozen=True)
class Hangs(Term):
    def __call__(self, answered, check):
        while len(answered.token_ids) % 2 == 0:
            pass
        return 1.0
"""


@pytest.mark.parametrize(("term", "reason"), [("Raises", "RuntimeError: no reward today"), ("Hangs", "time limit")])
def test_a_failing_reward_is_named_and_counted_or_ends_the_run(term, reason, tuned, tmp_path):
    file, run = tmp_path / "terms.py", tmp_path / "run"
    file.write_text(TERMS)
    reward = [
        f"alignment.reward.terms=[{{term: length}}, {{term: {{name: '{file}:{term}'}}}}]",
        "alignment.reward.time_limit_s=0.3",
        "trainer.max_steps=1",
    ]
    result = lit_illada("align", tuned, *SMALL, *reward, f"run_dir={run}")
    assert result.exit_code == 0, result.output
    ((_, failures),) = curves(run)[f"rollout/failures_reward_{term}"]
    assert failures >= 1
    result = lit_illada(
        "align", tuned, *SMALL, *reward, "alignment.reward.on_failure=stop", f"run_dir={tmp_path / 'b'}"
    )
    assert result.exit_code == 1
    last = result.output.strip().splitlines()[-1]
    assert f"reward {term}, completion " in last
    assert reason in last


REFUSED = {
    "so the completions of a prompt would be equal": ["generation.temperature=0"],
    "problems.difficulties is [7, 9], but the 1280 train problems have depth 1": ["problems.difficulties=[7,9]"],
    "the range is too small": ["trainer.val_rows=600", "task.range.max_numbers=[1]"],
    "alignment.form.name=dpo learns from pairs: give preferences=FILE": ["alignment=vrpo", "alignment.group_size=2"],
    "needs alignment.form.name=dpo: set alignment=vrpo": ["preferences=pairs.jsonl"],
    "generation.remask masks tokens again": ["alignment=cj_grpo", "generation/remask=remdm_cap"],
    "generation.on_loop masks tokens again: set generation/on_loop=none, or choose an estimator that does not": [
        "alignment=cj_grpo",
        "generation/on_loop=remask_span",
    ],
    "generation.thinking_stop masks tokens again: set generation/thinking_stop=none, or choose": [
        "alignment=step_merge",
        "generation/thinking_stop=hard",
        "generation.thinking_stop.answer_tokens=4",
    ],
    "alignment.level is 'step', but generation.early_exit masks tokens again: set generation/early_exit=none, or": [
        "alignment.level=step",
        "generation/early_exit=settled",
    ],
    "alignment.estimator.name is 'trajectory', which scores the states of a rollout, but form 'dpo' learns from": [
        "alignment=vrpo",
        "alignment/estimator=trajectory",
        "alignment.group_size=2",
        "preferences=pairs.jsonl",
    ],
    "together more than model.max_position_embeddings=512": ["generation.max_new_tokens=500"],
    "trainer.batch_rows is 20, but an optimizer step trains on": [
        "trainer.batch_rows=20",
        "trainer.micro_batch_rows=4",
    ],
    "prompts_per_step is 3: it must be a multiple of 2": ["prompts_per_step=3", "trainer.devices=2"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(message, tuned, tmp_path):
    run = tmp_path / "run"
    result = lit_illada("align", tuned, *SMALL, *REFUSED[message], f"run_dir={run}")
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1
    assert not run.exists()


def test_a_pair_of_equal_texts_is_refused_with_its_line(pairs, tuned, tmp_path):
    with pairs.open("a") as file:
        file.write(json.dumps({"prompt": "1+1?", "chosen": "2", "rejected": "2"}) + "\n")
    offline = ["alignment=vrpo", "alignment.group_size=2", f"preferences={pairs}"]
    result = lit_illada("align", tuned, *SMALL, *offline, f"run_dir={tmp_path / 'run'}")
    assert result.output == (
        f"Error: {pairs}:61: chosen and rejected are equal, so the pair has no preference: remove the line\n"
    )


def test_a_causal_checkpoint_is_refused(tiny_overrides, tmp_path):
    causal = ["objective=autoregressive", "model.is_causal=true", "trainer.max_steps=2", "trainer.val_every_steps=2"]
    assert lit_illada("pretrain", *tiny_overrides, *causal, f"run_dir={tmp_path / 'base'}").exit_code == 0
    result = lit_illada("align", tmp_path / "base", *SMALL, f"run_dir={tmp_path / 'run'}")
    assert result.exit_code == 1
    assert "the checkpoint is causal" in result.output


def test_another_axis_drops_the_settings_that_the_method_made_for_its_own():
    config = load("align", ["alignment=espo", "alignment/estimator=elbo", "alignment/regulariser=none"]).alignment
    assert (config.estimator, config.regulariser) == (Elbo(), NoRegulariser())
    same = load("align", ["alignment=espo", "alignment/regulariser=kl_ref"]).alignment
    assert same == load("align", ["alignment=espo"]).alignment
    assert load("align", ["alignment/estimator=elbo", "alignment.estimator.num_draws=4"]).alignment.estimator == Elbo(4)


FSDP = "trainer.parallel.strategy=fsdp"
SPREADS = {"ddp": ["trainer.devices=2"], "fsdp": ["trainer.devices=2", FSDP]}


@pytest.mark.slow
@pytest.mark.parametrize("spread", SPREADS)
def test_a_run_is_the_same_on_two_processes_and_resumes_on_one(spread, tuned, aligned, tmp_path):
    run = tmp_path / "run"
    line = [sys.executable, "-m", "lit_illada", "align", tuned, *SMALL, *SPREADS[spread], f"run_dir={run}"]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first = lambda folder: (folder / "samples.txt").read_text().partition("=== step 2")[0]  # noqa: E731
    assert first(run) == first(aligned)
    expected, other = curves(aligned), curves(run)
    for tag in ("rollout/reward", "rollout/length", "val/accuracy", "train/loss"):
        assert dict(other[tag]) == pytest.approx(dict(expected[tag]), abs=2e-3), tag
    for later in (3, 4):
        path = run / "checkpoints" / f"step={later:08}.ckpt"
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    back = ["trainer.devices=1", "trainer.parallel.strategy=auto"]
    result = lit_illada("align", "--resume", run, *back)
    assert result.exit_code == 0, result.output

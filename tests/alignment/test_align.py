"""Alignment runs from the command line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_illada import build
from lit_illada.cli import main
from lit_illada.config import load_file
from lit_illada.data.tokenizer import Tokenizer
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


def curves(run):
    """(step, value) by tag, without measured times."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("perf/") or "passes" in tag]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


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


@pytest.mark.parametrize("changed", [["trainer.micro_batch_rows=8"], ["rollout_rows=3"]], ids=str)
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


def test_groups_without_variance_are_reported_at_once_and_change_nothing(tuned, tmp_path, caplog):
    run = tmp_path / "run"
    # an impossible format: every completion has reward 0
    flat = ["alignment=gdpo", "alignment.reward.terms=[{term: {name: format, pattern: never}}]"]
    still = ["optim.optimizer.weight_decay=0", "trainer.max_steps=2"]
    result = lit_illada("align", tuned, *SMALL, *flat, *still, f"run_dir={run}")
    assert result.exit_code == 0, result.output
    assert "all 8 completions have reward 0" in caplog.text
    assert curves(run)["rollout/flat_groups"] == [(0, 1.0)]
    before, after = weights(tuned), weights(run)
    assert all(torch.equal(before[name], after[name]) for name in before)
    result = lit_illada("align", tuned, *SMALL, *flat, "trainer.max_steps=40", f"run_dir={tmp_path / 'long'}")
    assert result.exit_code == 1
    assert "10 rollouts in a row were without effect" in result.output.splitlines()[-1]

"""Saving and retention of checkpoints, and writing in the background."""

import os
import threading

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.checkpoints.open import open_checkpoint
from lit_illada.cli import main
from lit_illada.errors import UserError
from lit_illada.training.checkpointing import writer as checkpoint_writer
from lit_illada.training.checkpointing.files import checkpoint_path, checkpoints_by_step, latest_checkpoint, partial_of
from lit_illada.training.checkpointing.reading import Weights, read_checkpoint
from lit_illada.training.checkpointing.saving import Checkpoints, Retention
from lit_illada.training.checkpointing.writer import CheckpointWriter
from lit_illada.training.config.trainer import TrainerConfig

STEPS = range(10, 101, 10)
BOUNDS = {20: 3.0, 40: 1.5, 60: 1.5, 80: float("nan"), 100: 2.0}


@pytest.mark.parametrize(
    ("retention", "retained"),
    [
        (Retention(1), {100}),
        (Retention(3), {80, 90, 100}),
        (Retention(1, every_steps=30), {30, 60, 90, 100}),
        (Retention(1, best=1), {40, 100}),
        (Retention(1, best=2), {40, 60, 100}),
        (Retention(1, best=9), {20, 40, 60, 100}),
        (Retention(2, every_steps=50, best=1), {40, 50, 90, 100}),
        (Retention(20), set(STEPS)),
    ],
)
def test_the_newest_the_regular_and_the_best_are_retained(retention, retained):
    assert retention.select(STEPS, BOUNDS) == retained


@given(st.data(), st.integers(1, 3), st.integers(0, 3), st.sampled_from([None, 4]), st.sampled_from([1, 3]))
def test_removing_step_by_step_equals_removing_at_the_end(data, newest, best, every_steps, counted):
    """Nothing that a later look would keep is gone already."""
    retention = Retention(newest, every_steps, best, counted)
    bounds = data.draw(st.dictionaries(st.integers(1, 12), st.floats(0, 5), max_size=12))
    there: set[int] = set()
    for step in range(1, 13):
        there = retention.select({*there, step}, bounds)
    assert there == retention.select(range(1, 13), bounds)


@given(st.sets(st.integers(1, 400)), st.integers(1, 4), st.sampled_from([10, 100]))
def test_checkpoints_saved_on_stops_do_not_displace_regular_ones(stops, newest, every_steps):
    """The newest of the schedule stay as in a run that nobody stopped, and the very last."""
    scheduled = set(range(every_steps, 401, every_steps))
    retention = Retention(newest, counted_every_steps=every_steps)
    there: set[int] = set()
    for step in sorted(scheduled | stops):
        there = retention.select({*there, step}, {})
        undisturbed = sorted(each for each in scheduled if each <= step)[-newest:]
        assert {step, *undisturbed} <= there
        assert len(there) <= newest + 1


def test_with_rollback_regular_checkpoints_are_counted(tiny_overrides, tmp_path):
    rollback = ["trainer/on_divergence=rollback", "trainer.on_divergence.steps_back=2"]
    rollback += ["trainer.on_divergence.max_spike_steps=1", "trainer.max_nonfinite_steps=1"]
    for response, retained in (([], {6, 7}), (rollback, {3, 6, 7})):
        run = tmp_path / f"run of {len(response)}"
        command = ["pretrain", *tiny_overrides, *response, "trainer.max_steps=7", f"run_dir={run}"]
        result = CliRunner().invoke(main, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert set(checkpoints_by_step(run / "checkpoints")) == retained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_best": -1}, "trainer.keep_best is -1: it must be 0 or more"),
        ({"keep_every_steps": 150}, "trainer.keep_every_steps=150 is no multiple of checkpoint_every_steps=100"),
        ({"keep_checkpoints": 0}, "trainer.keep_checkpoints is 0: it must be 1 or more"),
    ],
)
def test_an_invalid_retention_is_rejected(options, message):
    with pytest.raises(UserError, match=message):
        TrainerConfig(**options)


@pytest.fixture
def slow_disk(monkeypatch):
    """A disk that has written nothing for good until it is let."""
    goes_on, sync = threading.Event(), os.fsync

    def wait(handle):
        goes_on.wait(60)
        sync(handle)

    monkeypatch.setattr(os, "fsync", wait)
    return goes_on


def test_training_continues_during_a_slow_write_of_an_unchanged_copy(slow_disk, tmp_path):
    weights = torch.arange(1000.0)
    nested = {"state_dict": {"w": weights}, "callbacks": {"a": {"list": [1, weights[:2]]}}, "global_step": 3}
    writer = CheckpointWriter(is_async=True)
    writer.save_checkpoint(nested, tmp_path / "step=00000003.ckpt")
    weights.zero_()
    nested["callbacks"]["a"]["list"].append("later")
    assert writer.is_busy
    assert latest_checkpoint(tmp_path) is None
    slow_disk.set()
    writer.wait()
    assert latest_checkpoint(tmp_path) is None
    writer.publish()
    content = read_checkpoint(tmp_path / "step=00000003.ckpt")
    assert torch.equal(content["state_dict"]["w"], torch.arange(1000.0))
    assert content["callbacks"]["a"]["list"][0] == 1
    assert torch.equal(content["callbacks"]["a"]["list"][1], torch.tensor([0.0, 1.0]))
    assert len(content["callbacks"]["a"]["list"]) == 2


def test_a_failed_write_is_reported_and_leaves_the_earlier_checkpoint_intact(tmp_path):
    writer = CheckpointWriter(is_async=True)
    for step in (3, 6):
        if step == 6:
            (tmp_path / ".step=00000006.ckpt.partial").mkdir()  # where the file would be
        writer.save_checkpoint({"global_step": step}, tmp_path / f"step={step:08d}.ckpt")
        writer.wait()
        assert (writer.error is None) == (step == 3)
        if writer.error is None:
            writer.publish()
    assert "step=00000006.ckpt: the checkpoint could not be written" in str(writer.error)
    writer.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["step=00000003.ckpt"]
    assert read_checkpoint(latest_checkpoint(tmp_path))["global_step"] == 3


@pytest.mark.parametrize("error", [MemoryError(), KeyError("float4")])
@pytest.mark.parametrize("is_async", [True, False])
def test_an_interrupted_write_never_becomes_a_checkpoint(error, is_async, tmp_path, monkeypatch):
    def write_half(content, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", write_half)
    writer = CheckpointWriter(is_async=is_async)
    writer.save_checkpoint({"global_step": 3}, tmp_path / "step=00000003.ckpt")
    writer.wait()
    assert "step=00000003.ckpt: the checkpoint could not be written (" in str(writer.error)
    assert (type(error).__name__ if isinstance(error, MemoryError) else "float4") in str(writer.error)
    with pytest.raises(AssertionError):
        writer.publish()
    assert checkpoints_by_step(tmp_path) == {}
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_running_out_of_memory_for_the_copy_ends_the_run_with_an_error(tiny_overrides, tmp_path, monkeypatch):
    run = tmp_path / "run"
    honest = checkpoint_writer._copied

    def copied(content, parts):
        if content["global_step"] > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return honest(content, parts)

    monkeypatch.setattr(checkpoint_writer, "_copied", copied)
    result = CliRunner().invoke(main, ["pretrain", *tiny_overrides, f"run_dir={run}"])
    assert result.exit_code == 1
    assert "out of memory on this machine (DefaultCPUAllocator" in result.output
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step=00000003.ckpt"}


def test_a_writer_can_start_again_after_a_failed_start(tmp_path, monkeypatch):
    writer = CheckpointWriter(is_async=True)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_writer, "_copied", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            writer.save_checkpoint({"global_step": 1}, tmp_path / "step=00000001.ckpt")
    writer.save_checkpoint({"global_step": 2}, tmp_path / "step=00000002.ckpt")
    writer.wait()
    writer.publish()
    assert set(checkpoints_by_step(tmp_path)) == {2}


def test_a_synchronous_checkpoint_is_on_disk_at_once(tmp_path):
    writer = CheckpointWriter(is_async=False)
    writer.save_checkpoint({"global_step": 1}, tmp_path / "step=00000001.ckpt")
    assert not writer.is_busy
    writer.publish()
    assert read_checkpoint(tmp_path / "step=00000001.ckpt")["global_step"] == 1


def test_a_run_applies_its_retention_and_links_the_best_checkpoint(tiny_overrides, tmp_path):
    """Also what it has seen before it was resumed counts."""
    run = tmp_path / "run"
    options = [
        "trainer.keep_checkpoints=1",
        "trainer.keep_every_steps=9",
        "trainer.keep_best=1",
        "trainer.val_every_steps=3",
    ]
    # it learns, then resumes at a rate that overshoots, so that the best checkpoint is not the last
    begin = [*tiny_overrides, *options, "optim.optimizer.learning_rate=0.01", f"run_dir={run}"]
    go_on = ["--resume", str(run), "optim.optimizer.learning_rate=1.0", "trainer.max_steps=18"]
    for arguments in (begin, go_on):
        result = CliRunner().invoke(main, ["pretrain", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    folder = run / "checkpoints"
    bounds = read_checkpoint(latest_checkpoint(folder))["callbacks"]["Checkpoints"]["bounds"]
    assert sorted(bounds) == [3, 6, 9, 12, 15, 18]
    best = min(bounds, key=bounds.get)
    assert best == 12
    assert set(checkpoints_by_step(folder)) == {9, 12, 18}
    assert (folder / "best").resolve() == checkpoints_by_step(folder)[best].resolve()
    opened = open_checkpoint(folder / "best")
    weights = Weights(read_checkpoint(checkpoints_by_step(folder)[best]))
    assert all(torch.equal(opened.tensors[name], weights[f"model.{name}"]) for name in opened.tensors)


def test_a_checkpoint_that_cannot_be_written_costs_no_earlier_one(tiny_overrides, tmp_path):
    """The run ends in one line between two steps, and resumes from the last complete checkpoint once there is space."""
    run = tmp_path / "run"
    begin = [*tiny_overrides, f"run_dir={run}", "trainer.keep_checkpoints=9"]
    assert CliRunner().invoke(main, ["pretrain", *begin, "trainer.max_steps=6"]).exit_code == 0
    obstacle = partial_of(checkpoint_path(run / "checkpoints", 9))
    on = ["pretrain", "--resume", str(run), "trainer.max_steps=12"]
    honest = Checkpoints.on_train_start

    def obstructed(self, *arguments):
        honest(self, *arguments)
        obstacle.mkdir()  # where the file would be

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_start", obstructed)
        result = CliRunner().invoke(main, on)
    assert result.exit_code == 1
    assert "step=00000009.ckpt: the checkpoint could not be written" in result.output
    assert set(checkpoints_by_step(run / "checkpoints")) == {3, 6}
    assert not obstacle.exists()
    assert CliRunner().invoke(main, on).exit_code == 0
    assert set(checkpoints_by_step(run / "checkpoints")) == {3, 6, 9, 12}

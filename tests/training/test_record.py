"""A run that was killed and resumed leaves the same curves, samples and answers as one that was left alone."""

import multiprocessing
import os
import shutil
import time

import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_illada.cli import main
from lit_illada.training.checkpointing.files import checkpoints_by_step
from lit_illada.training.module import PretrainModule
from lit_illada.training.record import record_files, record_sizes, truncate_records, wait_for_later_name

PROMPT = "samples.prompts=['alpha ']"
# 14 is no validated step: the run is measured once more at its end
LENGTH = ["trainer.max_steps=14", "trainer.checkpoint_every_steps=5", "trainer.log_every_steps=3"]


def pretrain(*arguments):
    result = CliRunner().invoke(main, ["pretrain", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def killed_at(step, *arguments):
    """Run in a process that ends itself, as SIGKILL does, in the training step after `step`."""
    process = multiprocessing.get_context("fork").Process(target=_run_until, args=(step, arguments))
    process.start()
    process.join(120)
    assert process.exitcode == 9


def _run_until(step, arguments):
    honest = PretrainModule.training_step

    def training_step(self, *inputs):
        if self.global_step == step:
            self.trainer.strategy.checkpoint_io.wait()
            os._exit(9)
        return honest(self, *inputs)

    PretrainModule.training_step = training_step
    pretrain(*arguments)


def curves(run):
    """(step, value) of every tag; of measured times and speeds the steps alone."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    found = {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for tag in found:
        if tag.startswith("perf/"):
            found[tag] = [step for step, _ in found[tag]]
    for tag in events.Tags()["tensors"]:
        if "samples" in tag:
            found[tag] = [(each.step, each.tensor_proto.string_val[0]) for each in events.Tensors(tag)]
    return found


@pytest.fixture(scope="module")
def undisturbed(tiny_overrides, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    pretrain(*tiny_overrides, *LENGTH, PROMPT, f"run_dir={run}")
    return run


_MORE_STOPS = [pytest.param([stop], marks=pytest.mark.slow) for stop in (0, 3, 11, 13)]


@pytest.mark.parametrize("stops", [[8], [2, 7, 13], *_MORE_STOPS])
def test_a_killed_and_resumed_run_leaves_the_record_of_an_undisturbed_one(stops, undisturbed, tiny_overrides, tmp_path):
    run = tmp_path / "run"
    killed_at(stops[0], *tiny_overrides, *LENGTH, PROMPT, f"run_dir={run}")
    for stop in stops[1:]:
        killed_at(stop, "--resume", run)
    pretrain("--resume", run)
    expected, found = curves(undisturbed), curves(run)
    assert found.keys() == expected.keys()
    assert {tag for tag in expected if found[tag] != expected[tag]} == set()
    assert (run / "samples.txt").read_bytes() == (undisturbed / "samples.txt").read_bytes()


def test_an_undisturbed_run_has_one_event_file(undisturbed):
    assert len(list(undisturbed.glob("events.out.tfevents.*"))) == 1


def test_an_event_file_begins_in_a_later_second_than_the_existing_ones(tmp_path):
    stamp = int(time.time())
    (tmp_path / f"events.out.tfevents.{stamp}.host.99999.0").touch()
    (tmp_path / "events.out.tfevents.copy").touch()
    wait_for_later_name(tmp_path)
    assert time.time() >= stamp + 1


def test_a_run_killed_before_its_last_figures_has_its_end_once(undisturbed, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    summary = (run / "summary.json").read_text()
    (run / "summary.json").write_text(summary.replace('"end"', '"not yet"'))
    pretrain("--resume", run)
    assert curves(run) == curves(undisturbed)
    assert (run / "samples.txt").read_bytes() == (undisturbed / "samples.txt").read_bytes()


def test_a_refused_resume_does_not_change_the_record(undisturbed, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    before = record_sizes(run)
    (run / "checkpoints" / checkpoints_by_step(run / "checkpoints")[14].name).unlink()
    result = CliRunner().invoke(main, ["pretrain", "--resume", str(run), "trainer.batch_rows=16"])
    assert result.exit_code == 1
    assert record_sizes(run) == before


def test_a_record_that_links_elsewhere_is_not_changed(tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "samples.txt").symlink_to(other)
    (run / "answers.jsonl").write_text("one\ntwo\n")
    truncate_records(record_files(run), {"samples.txt": 0, "answers.jsonl": 4}, step=3)
    assert other.read_text() == "mine"
    assert (run / "answers.jsonl").read_text() == "one\n"

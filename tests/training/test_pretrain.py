"""Pretraining runs from the command line: files written, signals, kills and resumes."""

import fcntl
import json
import math
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lit_illada.cli import main
from lit_illada.commands import training_run
from lit_illada.config import load_file
from lit_illada.objective.diffusion import DiffusionObjective
from lit_illada.training.callbacks.tensorboard import UNIGRAM_RUN, begin_board
from lit_illada.training.checkpointing.files import PARTIAL_SUFFIX, latest_checkpoint
from lit_illada.training.checkpointing.reading import read_checkpoint


def pretrain(*overrides, resume=None):
    """Run the command in this process; its result, with the exit code and everything printed."""
    arguments = ["pretrain", *overrides, *(["--resume", str(resume)] if resume else [])]
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def started(*arguments):
    """The command in a process of its own, as a shell would start it."""
    command = [sys.executable, "-m", "lit_illada.cli", "pretrain", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ),
        preexec_fn=_heed_hangups,
    )  # fmt: skip


def _heed_hangups():
    """Undo `nohup`, which the tests may run under: a process inherits ignored signals."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wait_for(condition, process, limit_s=120):
    end = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def weights(run):
    return read_checkpoint(latest_checkpoint(Path(run) / "checkpoints"))["state_dict"]


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


@pytest.fixture(scope="module")
def reference(tiny_overrides, tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "reference"
    result = pretrain(*tiny_overrides, f"run_dir={folder}", "samples.prompts=['alpha ']")
    assert result.exit_code == 0, result.output
    return folder


def curves(run):
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def scalars_of(run):
    """{tag: {step: value}}, without what a machine's speed decides."""
    events = curves(run)
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("perf/")]
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags}


def test_a_run_writes_its_config_curves_samples_summary_and_checkpoints(reference):
    config = load_file("pretrain", reference / "config.yaml")
    assert config.run_dir == str(reference)
    assert config.model.vocab_size == 300
    assert len(list((reference / "checkpoints").iterdir())) == 2
    assert latest_checkpoint(reference / "checkpoints").name == "step=00000012.ckpt"
    assert "=== step 12\nalpha " in (reference / "samples.txt").read_text()
    summary = json.loads((reference / "summary.json").read_text())
    assert summary["end"]["step"] == 12
    assert summary["end"]["val/nll_bound"] < summary["start"]["val/nll_bound"]
    assert summary["end"]["perf/tokens"] == 12 * 8 * 32
    assert summary["end"]["perf/flops"] > 0
    assert summary["end"]["perf/elapsed_s"] > 0
    assert summary["end"]["perf/peak_memory_bytes"] > 1e6
    provenance = json.loads((reference / "provenance.jsonl").read_text())
    assert len(provenance["data_sha256"]) == 64
    assert provenance["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_the_summary_table_states_each_figure_with_its_unit(tiny_overrides, tmp_path):
    result = pretrain(*tiny_overrides, f"run_dir={tmp_path / 'run'}", "trainer.max_steps=2")
    end = json.loads((tmp_path / "run" / "summary.json").read_text())["end"]
    rows = {
        words[1].strip(): words[-2].strip() for line in result.output.splitlines() if len(words := line.split("│")) > 4
    }
    assert rows["unigram model, nats/token"] == f"{end['val/unigram_cross_entropy']:.4f}"
    assert rows["NLL bound, nats/token"] == f"{end['val/nll_bound']:.4f}"
    assert rows["bits per byte"] == f"{end['val/bits_per_byte']:.4f}"


def test_the_curves_have_their_tags_at_the_right_steps(reference):
    events = curves(reference)
    scalars = {tag: sorted(events.Scalars(tag), key=lambda event: event.step) for tag in events.Tags()["scalars"]}
    for tag in ("train/loss", "train/nll", "train/accuracy", "train/gradient_norm", "train/learning_rate"):
        assert [event.step for event in scalars[tag]] == [2, 4, 6, 8, 10, 12], tag
    for tag in ("val/nll_bound", "val/nll_bound_stderr", "val/bits_per_byte", "val/unigram_cross_entropy"):
        assert [event.step for event in scalars[tag]] == [0, 6, 12], tag
    assert any(tag.startswith("val_nll_by_ratio/") for tag in scalars)
    assert all(event.value > 0 for event in scalars["perf/tokens_per_s"])
    assert 0 < scalars["perf/mfu"][-1].value < 1
    # the warm-up is over: the rate of step 2 is the full one
    assert scalars["train/learning_rate"][0].value == pytest.approx(2e-4)


def test_tensorboard_has_the_layout_the_samples_and_the_hyper_parameters(reference):
    tags = curves(reference).Tags()
    assert "custom_scalars__config__" in tags["tensors"]
    assert "samples/prompt_0/text_summary" in tags["tensors"]
    assert any("hparams" in str(plugin) for plugin in curves(reference).summary_metadata.values())


def test_tensorboard_separates_the_prompt_from_the_completion(reference):
    text = curves(reference).Tensors("samples/prompt_0/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert text.startswith("**Prompt**\n\n    alpha \n\n**Completion**\n\n    ")


def test_tensorboard_has_the_main_curves_over_tokens_too(reference):
    events, config = curves(reference), yaml.safe_load((reference / "config.yaml").read_text())
    for tag in ("val/nll_bound", "val/bits_per_byte", "train/loss", "train/nll"):
        over_steps, over_tokens = events.Scalars(tag), events.Scalars(f"over_tokens/{tag}")
        assert [event.value for event in over_tokens] == [event.value for event in over_steps]
        tokens = config["trainer"]["batch_rows"] * config["data"]["row_length"]
        assert [event.step for event in over_tokens] == [event.step * tokens for event in over_steps]


def test_the_unigram_line_is_a_separate_run_in_the_charts_of_the_bound(reference):
    line = curves(reference / UNIGRAM_RUN)
    (expected,) = {event.value for event in curves(reference).Scalars("val/unigram_cross_entropy")}
    for tag in ("val/nll_bound", "over_tokens/val/nll_bound"):
        own = curves(reference).Scalars(tag)
        assert [event.step for event in line.Scalars(tag)] == [own[0].step, own[-1].step]
        assert {event.value for event in line.Scalars(tag)} == {expected}


def test_hyper_parameters_open_on_the_objective(reference):
    content = HParamsPluginData.FromString(
        curves(reference).summary_metadata["_hparams_/experiment"].plugin_data.content
    )
    # TensorBoard's own order
    infos = sorted(content.experiment.hparam_infos, key=lambda info: (not info.differs, info.name))
    is_objective = [info.name.startswith("objective.") for info in infos]
    assert sum(is_objective) >= 5
    assert is_objective == sorted(is_objective, reverse=True)


def test_a_run_of_a_sweep_is_compared_by_its_labels_only(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run", version="")
    labels = {"arm": "cosine", "seed": 3}
    begin_board(logger, {"seed": 3}, labels, unigram_cross_entropy=math.nan, num_steps=1, num_tokens=1)
    logger.finalize("success")
    metadata = curves(tmp_path / "run").summary_metadata["_hparams_/session_start_info"]
    content = HParamsPluginData.FromString(metadata.plugin_data.content)
    assert set(content.session_start_info.hparams) == {"arm", "seed"}


def test_the_same_seed_gives_bit_identical_weights_and_metrics(reference, tiny_overrides, tmp_path):
    again = tmp_path / "again"
    assert pretrain(*tiny_overrides, f"run_dir={again}", "samples.prompts=['alpha ']").exit_code == 0
    assert_same_weights(reference, again)
    for key in ("start", "end"):
        first, second = (json.loads((run / "summary.json").read_text())[key] for run in (reference, again))
        assert {k: v for k, v in first.items() if "perf" not in k} == {
            k: v for k, v in second.items() if "perf" not in k
        }
    assert (reference / "samples.txt").read_text() == (again / "samples.txt").read_text()


def test_another_seed_gives_other_weights(reference, tiny_overrides, tmp_path):
    assert pretrain(*tiny_overrides, f"run_dir={tmp_path / 'other'}", "seed=1").exit_code == 0
    one, other = weights(reference), weights(tmp_path / "other")
    name = "model.model.embed_tokens.weight"
    assert not torch.equal(one[name], other[name])


VARIANTS = {
    "muon, ema, reactive": [
        "optim=muon",
        "optim/schedule=reactive",
        "optim.schedule.patience=1",
        "optim.schedule.min_improvement=9",
        "optim.schedule.warmup_steps=0",
        "trainer.ema_decay=0.9",
        "trainer.val_every_steps=3",
    ],
    "accumulated, two workers": ["trainer.micro_batch_rows=2", "data.num_workers=2", "trainer.val_every_steps=4"],
    "variance-optimal ratios": ["objective=variance_optimal"],
    # the smallest matrices that have them
    "8-bit states": ["optim/optimizer=adamw8bit", "model.intermediate_size=128"],
}


_SLOW_VARIANTS = ("accumulated, two workers", "8-bit states")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in _SLOW_VARIANTS)) for name in VARIANTS]
)
def test_a_run_stopped_at_a_checkpoint_and_resumed_equals_an_uninterrupted_one(name, tiny_overrides, tmp_path):
    if "8-bit" in name:
        pytest.importorskip("torchao")
    overrides = [*tiny_overrides, *VARIANTS[name]]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    keep_all = "trainer.keep_checkpoints=100"
    assert pretrain(*overrides, f"run_dir={whole}", keep_all).exit_code == 0
    assert pretrain(*overrides, f"run_dir={parts}", keep_all).exit_code == 0
    for stop_at in (3, 6):
        for path in (parts / "checkpoints").iterdir():
            if path.name > f"step={stop_at:08d}.ckpt":
                path.unlink()
        assert pretrain(resume=parts).exit_code == 0
        assert_same_weights(whole, parts)
    bounds = [{e.step: e.value for e in curves(run).Scalars("val/nll_bound")} for run in (whole, parts)]
    assert bounds[0] == bounds[1]
    costs = [json.loads((run / "summary.json").read_text())["end"] for run in (whole, parts)]
    for name in ("perf/tokens", "perf/flops"):
        assert costs[0][name] == costs[1][name], name


@pytest.mark.parametrize(("before", "after"), [(8, 2), (2, 8)])
def test_a_resumed_run_may_use_another_micro_batch_size(before, after, tiny_overrides, tmp_path):
    """The same rows, validations and checkpoints; the weights equal those of the uninterrupted run up to rounding."""
    constant = ["optim/schedule=wsd", "optim.schedule.final_factor=1.0", "optim.schedule.warmup_steps=2"]
    overrides = [*tiny_overrides, *constant, f"trainer.micro_batch_rows={before}"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert pretrain(*overrides, f"run_dir={whole}").exit_code == 0
    assert pretrain(*overrides, f"run_dir={parts}", "trainer.max_steps=9").exit_code == 0
    assert pretrain("trainer.max_steps=12", f"trainer.micro_batch_rows={after}", resume=parts).exit_code == 0
    last = read_checkpoint(parts / "checkpoints" / "step=00000012.ckpt")
    assert last["PackedDataModule"]["rows_seen"] == 96
    # the resumed run's record is the undisturbed one's: the validation at the first end is dropped
    assert sorted(event.step for event in curves(parts).Scalars("val/nll_bound")) == [0, 6, 12]
    one, other = weights(whole), weights(parts)
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-3)


def test_a_resumed_run_uses_overridden_learning_rates(tiny_overrides, tmp_path):
    """The remedy for a run that diverged: from the last good checkpoint with a lower rate."""
    run = tmp_path / "run"
    assert pretrain(*tiny_overrides, f"run_dir={run}", "trainer.max_steps=6").exit_code == 0
    before = weights(run)
    rates = ["optim.optimizer.learning_rate=1e-12", "optim.optimizer.weight_decay=0.0"]
    assert pretrain("trainer.max_steps=12", *rates, resume=run).exit_code == 0
    after = weights(run)
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)
    scalars = curves(run).Scalars("train/learning_rate")
    assert scalars[-1].value < 2e-12
    assert load_file("pretrain", run / "config.yaml").optim.optimizer.learning_rate == 1e-12


def test_a_finished_run_keeps_its_summary(reference):
    before = (reference / "summary.json").read_text()
    assert pretrain(resume=reference).exit_code == 1
    assert (reference / "summary.json").read_text() == before


def test_samples_are_generated_by_the_averaged_weights_that_are_validated_and_saved(tiny_overrides, tmp_path):
    run = tmp_path / "run"
    prompts = ["samples.prompts=['alpha ']", "samples.generation.max_new_tokens=32", "trainer.ema_decay=0.5"]
    fast = ["optim.optimizer.learning_rate=0.02"]
    assert pretrain(*tiny_overrides, *prompts, *fast, f"run_dir={run}").exit_code == 0
    arguments = ["generate", str(run), "--prompt", "alpha ", "generation.max_new_tokens=32"]
    written = CliRunner().invoke(main, arguments, catch_exceptions=False).stdout.removesuffix("\n")
    last = (run / "samples.txt").read_text().split("=== step 12\n")[1]
    assert last == f"alpha {written}\n\n"


def test_no_checkpoint_is_written_in_the_middle_of_an_accumulated_step(tiny_overrides, tmp_path):
    """Also right after a resume, when the step of the first micro-batch is one that was saved before."""
    run = tmp_path / "run"
    rows = "trainer.micro_batch_rows=2"
    assert pretrain(*tiny_overrides, f"run_dir={run}", rows, "trainer.max_steps=3").exit_code == 0
    saved = (run / "checkpoints" / "step=00000003.ckpt").read_bytes()
    assert pretrain("trainer.max_steps=4", resume=run).exit_code == 0
    assert (run / "checkpoints" / "step=00000003.ckpt").read_bytes() == saved
    for path in (run / "checkpoints").iterdir():
        content = read_checkpoint(path)
        assert content["PackedDataModule"]["rows_seen"] == 8 * content["global_step"]


def test_a_finished_run_can_be_resumed_with_more_steps(reference, tiny_overrides, tmp_path):
    """A schedule of constant rate: 8 steps and then 4 more are 12."""
    constant = ["optim/schedule=wsd", "optim.schedule.final_factor=1.0", "optim.schedule.warmup_steps=2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert pretrain(*tiny_overrides, *constant, f"run_dir={whole}").exit_code == 0
    assert pretrain(*tiny_overrides, *constant, f"run_dir={parts}", "trainer.max_steps=8").exit_code == 0
    assert pretrain("trainer.max_steps=12", resume=parts).exit_code == 0
    assert_same_weights(whole, parts)


def test_a_run_killed_at_any_moment_and_resumed_equals_an_uninterrupted_one(tiny_overrides, tmp_path):
    overrides = [*tiny_overrides, "data.num_workers=2", "trainer.max_steps=40", "trainer.micro_batch_rows=4"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert pretrain(*overrides, f"run_dir={whole}").exit_code == 0
    process = started(*overrides, f"run_dir={killed}")
    wait_for(lambda: latest_checkpoint(killed / "checkpoints") is not None, process)
    time.sleep(0.1)
    process.kill()
    process.wait()
    assert latest_checkpoint(killed / "checkpoints").name < "step=00000040.ckpt"
    assert pretrain(resume=killed).exit_code == 0
    assert_same_weights(whole, killed)


def test_a_run_folder_is_locked_by_one_process_and_free_once_it_is_killed(tiny_overrides, tmp_path):
    run = tmp_path / "run"
    endless = ["trainer.max_steps=100000", "trainer.checkpoint_every_steps=10", "data.num_workers=1"]
    process = started(*tiny_overrides, f"run_dir={run}", *endless)
    wait_for(lambda: latest_checkpoint(run / "checkpoints") is not None, process)
    partial = run / "checkpoints" / f".written-now{PARTIAL_SUFFIX}"
    partial.touch()
    looked = CliRunner().invoke(main, ["launch", "pretrain", "--resume", str(run), "--dry-run"])
    assert looked.exit_code == 0, looked.output
    refused = pretrain(resume=run)
    assert refused.exit_code == 1
    assert f"{run} is already being trained by process {process.pid} on " in refused.output
    assert partial.exists()
    assert process.poll() is None
    process.kill()
    process.wait()
    step = read_checkpoint(latest_checkpoint(run / "checkpoints"))["global_step"]
    assert pretrain(f"trainer.max_steps={step + 1}", resume=run).exit_code == 0
    assert not partial.exists()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_saves_and_stops_the_run_and_prints_how_to_resume(number, tiny_overrides, tmp_path):
    run = tmp_path / "run"
    endless = ["trainer.max_steps=100000", "trainer.checkpoint_every_steps=10"]
    process = started(*tiny_overrides, f"run_dir={run}", *endless)
    wait_for(lambda: latest_checkpoint(run / "checkpoints") is not None, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"lit-illada pretrain --resume {run}" in " ".join(output.split())
    saved = read_checkpoint(latest_checkpoint(run / "checkpoints"))
    events = curves(run).Scalars("train/loss")
    assert saved["global_step"] >= events[-1].step
    assert "Traceback" not in output


def test_closing_the_terminal_saves_the_run(tiny_overrides, tmp_path):
    run, (ours, theirs) = tmp_path / "run", pty.openpty()
    endless = ["trainer.max_steps=100000", "trainer.checkpoint_every_steps=1000000"]
    command = [sys.executable, "-m", "lit_illada", "pretrain", *tiny_overrides, f"run_dir={run}", *endless]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: (_heed_hangups(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
    )  # fmt: skip
    os.close(theirs)
    wait_for(lambda: (run / "progress.json").is_file(), process)
    os.close(ours)  # the kernel sends SIGHUP
    assert process.wait(60) == 128 + signal.SIGHUP
    assert latest_checkpoint(run / "checkpoints") is not None
    assert json.loads((run / "summary.json").read_text())["end"]["step"] > 0


def test_signals_before_the_first_step_save_and_stop_the_run_after_it(tiny_overrides, tmp_path, monkeypatch):
    """And may be repeated: who manages a job says more than once that it will end."""
    run = tmp_path / "run"
    honest = training_run.append_summary
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}

    def announced(*arguments):
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return honest(*arguments)

    monkeypatch.setattr(training_run, "append_summary", announced)
    try:
        assert pretrain(*tiny_overrides, f"run_dir={run}").exit_code == 128 + signal.SIGUSR1
        # the process is about to end: further signals must not look like another end
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is handlers[signal.SIGINT]
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step=00000001.ckpt"]


@pytest.mark.parametrize("stop_at", [6, 7])
def test_a_run_stopped_by_a_signal_and_resumed_equals_an_uninterrupted_one(
    stop_at, tiny_overrides, tmp_path, monkeypatch
):
    """At a step that is validated, which moves the reactive schedule, and at one that is not; averages move by each."""
    reactive = ["optim/schedule=reactive", "optim.schedule.patience=1", "optim.schedule.min_improvement=9"]
    average = ["trainer.ema_decay=0.5", "optim.optimizer.learning_rate=0.01", "trainer.max_time_s=3600"]
    overrides = [*tiny_overrides, *reactive, *average, "optim.schedule.warmup_steps=0", "trainer.val_every_steps=3"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert pretrain(*overrides, f"run_dir={whole}").exit_code == 0
    honest = DiffusionObjective.corrupt

    def interrupted(self, batch, progress=0.0):
        if round(progress * 12) == stop_at - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(self, batch, progress)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionObjective, "corrupt", interrupted)
        assert pretrain(*overrides, f"run_dir={stopped}").exit_code == 128 + signal.SIGTERM
    assert latest_checkpoint(stopped / "checkpoints").name == f"step={stop_at:08d}.ckpt"
    callbacks = read_checkpoint(latest_checkpoint(stopped / "checkpoints"))["callbacks"]
    assert callbacks["EMAWeightAveraging"]["latest_update_step"] == stop_at
    assert callbacks["TimeLimit"]["trained_s"] > 0
    assert pretrain(resume=stopped).exit_code == 0
    assert_same_weights(whole, stopped)
    bounds = [{e.step: e.value for e in curves(run).Scalars("val/nll_bound")} for run in (whole, stopped)]
    assert bounds[0] == bounds[1]


def test_a_run_whose_last_step_is_not_validated_is_validated_at_its_end(tiny_overrides, tmp_path):
    run = tmp_path / "run"
    assert pretrain(*tiny_overrides, f"run_dir={run}", "trainer.max_steps=7").exit_code == 0
    assert sorted(event.step for event in curves(run).Scalars("val/nll_bound")) == [0, 6, 7]


def terminated_at(patch, step):
    """From now on a SIGTERM falls into the step after so many, of a run of 7."""
    honest = DiffusionObjective.corrupt

    def terminated(self, batch, progress=0.0):
        if round(progress * 7) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(self, batch, progress)

    patch.setattr(DiffusionObjective, "corrupt", terminated)


def figures(run):
    """Those of the end, without what a machine's speed decides."""
    end = json.loads((run / "summary.json").read_text())["end"]
    return {name: value for name, value in end.items() if "perf" not in name}


@pytest.mark.parametrize(("step", "limit"), [(6, "3600"), (0, "0.000001")])
def test_a_signal_in_the_last_step_does_not_prevent_the_final_validation(
    step, limit, tiny_overrides, tmp_path, monkeypatch
):
    """The last one by number, or by the limit of time."""
    whole, signalled = tmp_path / "whole", tmp_path / "told"
    overrides = [*tiny_overrides, "trainer.max_steps=7", f"trainer.max_time_s={limit}"]
    assert pretrain(*overrides, f"run_dir={whole}").exit_code == 0
    with monkeypatch.context() as patch:
        terminated_at(patch, step)
        result = pretrain(*overrides, f"run_dir={signalled}")
    assert result.exit_code == 0, result.output
    assert figures(signalled) == figures(whole)
    assert figures(signalled)["step"] == step + 1
    assert "val/nll_bound" in figures(signalled)


@pytest.mark.parametrize("variant", [[], ["trainer.ema_decay=0.5"]])
@pytest.mark.parametrize("max_steps", [7, 12])
def test_a_run_killed_before_its_final_metrics_has_them_after_a_resume(variant, max_steps, tiny_overrides, tmp_path):
    """After a step that was validated, or one that was not; without a step more."""
    run = tmp_path / "run"
    overrides = [*tiny_overrides, *variant, f"trainer.max_steps={max_steps}", "optim.optimizer.learning_rate=0.01"]
    assert pretrain(*overrides, f"run_dir={run}").exit_code == 0
    summary, config = json.loads((run / "summary.json").read_text()), (run / "config.yaml").read_text()
    before, scalars, saved = figures(run), scalars_of(run), latest_checkpoint(run / "checkpoints").read_bytes()
    (run / "summary.json").write_text(json.dumps({"start": summary["start"]}))
    result = pretrain(resume=run)
    assert result.exit_code == 0, result.output
    assert {name: value for name, value in before.items() if "val" in name or name == "step"} == {
        name: value for name, value in figures(run).items() if "val" in name or name == "step"
    }
    again = json.loads((run / "summary.json").read_text())
    assert again["start"] == summary["start"]
    for name in ("tokens", "flops"):
        assert again["end"][f"perf/{name}"] == summary["end"][f"perf/{name}"]
    assert (
        summary["end"]["perf/elapsed_s"] * 0.5 < again["end"]["perf/elapsed_s"] < summary["end"]["perf/elapsed_s"] + 1
    )
    assert (run / "config.yaml").read_text() == config
    assert latest_checkpoint(run / "checkpoints").read_bytes() == saved
    assert scalars_of(run) == scalars
    refused = pretrain(resume=run)
    assert refused.exit_code == 1
    assert f"is finished at step {max_steps}" in refused.output


def test_a_step_with_a_non_finite_gradient_is_skipped_and_logged(tiny_overrides, tmp_path, monkeypatch, caplog):
    honest = DiffusionObjective.loss
    calls = []

    def sometimes_infinite(self, scores, noisy):
        calls.append(None)
        loss = honest(self, scores, noisy)
        return type(loss)(loss.sum * (float("inf") if len(calls) == 12 else 1.0), loss.count, loss.bins)

    monkeypatch.setattr(DiffusionObjective, "loss", sometimes_infinite)
    run = tmp_path / "run"
    every = ["trainer.checkpoint_every_steps=1", "trainer.keep_checkpoints=100", "trainer.log_every_steps=1"]
    assert pretrain(*tiny_overrides, *every, f"run_dir={run}").exit_code == 0
    before, after = (read_checkpoint(run / "checkpoints" / f"step={n:08d}.ckpt")["state_dict"] for n in (11, 12))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "step 12: the gradient norm is nan; the step is skipped" in caplog.text or "is inf" in caplog.text


@pytest.mark.parametrize("is_validated", [True, False])
def test_several_non_finite_steps_in_a_row_stop_the_run_with_a_checkpoint(
    is_validated, tiny_overrides, tmp_path, monkeypatch
):
    honest = DiffusionObjective.loss

    def infinite(self, scores, noisy):
        loss = honest(self, scores, noisy)
        return type(loss)(loss.sum * float("nan"), loss.count, loss.bins)

    monkeypatch.setattr(DiffusionObjective, "loss", infinite)
    run = tmp_path / "run"
    overrides = ["trainer.max_nonfinite_steps=2", f"trainer.val_every_steps={2 if is_validated else 6}"]
    result = pretrain(*tiny_overrides, *overrides, "trainer.ema_decay=0.5", f"run_dir={run}")
    assert result.exit_code == 1
    assert "2 steps in a row had a non-finite gradient" in result.output
    saved = read_checkpoint(latest_checkpoint(run / "checkpoints"))
    assert saved["global_step"] == 2
    assert saved["callbacks"]["EMAWeightAveraging"]["latest_update_step"] == 2
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


@pytest.mark.parametrize("normaliser", ["tokens", "masked", "sequences"])
def test_accumulation_gives_the_weights_of_one_large_batch(normaliser, tiny_overrides, tmp_path):
    """Also where micro-batches differ in what they count: the normaliser is that of the whole step."""
    overrides = [*tiny_overrides, "objective=llada", f"objective.normaliser={normaliser}", "trainer.max_steps=4"]
    one, four = tmp_path / "one", tmp_path / "four"
    assert pretrain(*overrides, f"run_dir={one}").exit_code == 0
    assert pretrain(*overrides, f"run_dir={four}", "trainer.micro_batch_rows=2").exit_code == 0
    large, small = weights(one), weights(four)
    for name in large:
        torch.testing.assert_close(large[name], small[name], atol=1e-5, rtol=1e-3)


def test_externally_started_processes_need_a_common_run_dir(tiny_overrides, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = pretrain(*tiny_overrides, "trainer.devices=2", "trainer.micro_batch_rows=4")
    assert result.exit_code == 1
    assert "run_dir=runs/NAME" in result.output


def test_externally_started_processes_must_match_the_configured_number(tiny_overrides, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = pretrain(*tiny_overrides)
    assert result.exit_code == 1
    assert "2 processes were started, but trainer.devices × trainer.num_nodes is 1" in result.output


def test_a_causal_model_trains_by_the_same_command(tiny_overrides, tmp_path):
    run = tmp_path / "run"
    result = pretrain(*tiny_overrides, f"run_dir={run}", "objective=autoregressive", "model.is_causal=true")
    assert result.exit_code == 0, result.output
    summary = json.loads((run / "summary.json").read_text())
    assert summary["end"]["val/nll_bound"] < summary["start"]["val/nll_bound"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.accelerator=gpu"], "torch sees no CUDA device"),
        (["data.row_length=0"], "data.row_length is 0"),
        (["model.vocab_size=100"], "the tokenizer has 300 tokens"),
        (["model.attention=varlen"], "needs a CUDA device"),
        (["trainer.val_rows=1"], "2 or more"),
        (["data.row_length=100000", "model.max_position_embeddings=200000"], "row"),
    ],
)
def test_an_invalid_config_ends_in_one_line_without_creating_a_folder(overrides, message, tiny_overrides, tmp_path):
    if {"trainer.accelerator=gpu", "model.attention=varlen"} & set(overrides) and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    run = tmp_path / "run"
    result = pretrain(*tiny_overrides, f"run_dir={run}", *overrides)
    assert result.exit_code == 1
    assert result.output.strip().splitlines()[-1].startswith("Error: ")
    assert message in result.output
    assert not run.exists()


def test_a_run_folder_is_never_overwritten(reference, tiny_overrides):
    result = pretrain(*tiny_overrides, f"run_dir={reference}")
    assert result.exit_code == 1
    assert "already holds a run" in result.output


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.hidden_size=64"], "is a checkpoint of another model (hidden_size: 32 there, 64 here)"),
        (["seed=7", "trainer.max_steps=20"], "seed=0"),
        (["trainer.batch_rows=16"], "trainer.batch_rows was 8 in the run and would be 16"),
        (["data.row_length=16", "trainer.max_steps=20"], "with data.row_length=32, not data.row_length=16"),
        (["data.num_streams=3", "trainer.max_steps=20"], "with data.num_streams=4, not data.num_streams=3"),
        (["optim.optimizer.name=muon"], "optimizer is adamw"),
        (["run_dir=elsewhere"], "the run stays in"),
        ([], "is finished at step 12: to resume it, raise trainer.max_steps"),
        (["trainer.max_stepz=7"], "did you mean 'trainer.max_steps'"),
    ],
)
def test_a_resume_with_an_incompatible_config_is_rejected(overrides, message, reference):
    result = pretrain(*overrides, resume=reference)
    assert result.exit_code == 1
    assert message in result.output.strip().splitlines()[-1]
    assert "Traceback" not in result.output


def test_resuming_without_a_run_or_from_a_damaged_checkpoint_is_rejected(reference, tmp_path):
    result = pretrain(resume=tmp_path)
    assert result.exit_code == 1
    assert "no run there" in result.output
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(latest_checkpoint(reference / "checkpoints").read_bytes()[:1000])
    result = CliRunner().invoke(main, ["generate", str(damaged), "--prompt", "a"])
    assert result.exit_code == 1
    assert "damaged.ckpt: not a readable checkpoint" in result.output

"""Divergence: detection, stop and rollback; healthy runs are unaffected."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lit_illada import build
from lit_illada.cli import main
from lit_illada.commands import training_run
from lit_illada.config import load, load_file
from lit_illada.data.stream import MicroBatches, row_at
from lit_illada.errors import UserError
from lit_illada.objective.diffusion import DiffusionObjective
from lit_illada.run_folder import RunFolder
from lit_illada.training.callbacks.divergence import LossSpikes
from lit_illada.training.checkpointing.files import (
    checkpoint_path,
    latest_checkpoint,
    link_best,
    newest_checkpoint_until,
    remove_partials,
)
from lit_illada.training.checkpointing.reading import Weights, read_checkpoint
from lit_illada.training.checkpointing.rollback import complete_rollback, remove_after, roll_back
from lit_illada.training.config.divergence import Rollback, SpikeConfig

ROLLBACK = [
    "trainer/on_divergence=rollback",
    "trainer.on_divergence.steps_back=2",
    "trainer.on_divergence.max_spike_steps=null",
    "trainer.max_nonfinite_steps=2",
    "trainer.log_every_steps=1",
]


def pretrain(*overrides, resume=None):
    arguments = ["pretrain", *overrides, *(["--resume", str(resume)] if resume else [])]
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def weights(run):
    return read_checkpoint(latest_checkpoint(Path(run) / "checkpoints"))["state_dict"]


def scalars(run, tag):
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []


def rollbacks(run):
    return [json.loads(line) for line in (run / "rollbacks.jsonl").read_text().splitlines()]


@pytest.fixture
def losses_by_step(monkeypatch):
    """Lets a test change the loss of a step: (step counted from 1, row ids, loss sum) -> loss sum."""

    def install(change, max_steps=12):
        honest_corrupt, honest_loss = DiffusionObjective.corrupt, DiffusionObjective.loss
        seen = {}

        def corrupt(self, batch, progress=0.0):
            seen["step"], seen["rows"] = round(progress * max_steps) + 1, batch.row_ids.tolist()
            return honest_corrupt(self, batch, progress)

        def loss(self, scores, noisy):
            honest = honest_loss(self, scores, noisy)
            return type(honest)(change(seen["step"], seen["rows"], honest.sum), honest.count, honest.bins)

        monkeypatch.setattr(DiffusionObjective, "corrupt", corrupt)
        monkeypatch.setattr(DiffusionObjective, "loss", loss)

    return install


def test_a_run_rolled_back_is_the_run_resumed_by_hand_with_a_lower_rate(losses_by_step, tiny_overrides, tmp_path):
    """From step 3, the newest checkpoint two steps before the first bad one, at half the rate, to the last bit."""
    pending = [8, 9]

    def change(step, rows, loss):
        if step in pending:
            pending.remove(step)
            return loss * math.nan
        return loss

    overrides = [*tiny_overrides, *ROLLBACK]
    by_hand, run = tmp_path / "by hand", tmp_path / "run"
    assert pretrain(*overrides, f"run_dir={by_hand}", "trainer.keep_checkpoints=9").exit_code == 0
    remove_after(by_hand / "checkpoints", 6)
    assert pretrain("optim.optimizer.learning_rate=1e-4", resume=by_hand).exit_code == 0

    losses_by_step(change)
    result = pretrain(*overrides, f"run_dir={run}")
    assert result.exit_code == 0, result.output
    assert not pending
    one, other = weights(by_hand), weights(run)
    assert all(torch.equal(one[name], other[name]) for name in one)
    (record,) = rollbacks(run)
    assert (record["from_step"], record["to_step"], record["learning_rate"]) == (9, 6, [2e-4, 1e-4])
    assert record["reason"] == "2 steps in a row had a non-finite gradient, from step 8 to 9"
    assert load_file("pretrain", run / "config.yaml").optim.optimizer.learning_rate == 1e-4
    saved = read_checkpoint(latest_checkpoint(run / "checkpoints"))
    assert saved["hyper_parameters"]["config"]["optim"]["optimizer"]["learning_rate"] == 1e-4
    assert (6, 1.0) in scalars(run, "train/rollbacks")
    # the curve has the step once, at the lower rate: points after the checkpoint were removed
    (of_step_7,) = [value for step, value in scalars(run, "train/learning_rate") if step == 7]
    assert (7, of_step_7) in scalars(by_hand, "train/learning_rate")
    assert of_step_7 < 1e-4


def test_rollbacks_are_logged_and_counted_across_a_resume(losses_by_step, tiny_overrides, tmp_path, caplog):
    losses_by_step(lambda step, rows, loss: loss * (math.nan if step in (8, 9, 10) else 1.0))
    run = tmp_path / "run"
    result = pretrain(*tiny_overrides, *ROLLBACK, f"run_dir={run}", "trainer.on_divergence.max_rollbacks=2")
    assert result.exit_code == 1
    assert "resuming from" in caplog.text
    assert "step=00000006.ckpt with optim.optimizer.learning_rate=0.0001 instead of 0.0002" in caplog.text
    assert "after 2 rollbacks (trainer.on_divergence.max_rollbacks=2)" in result.output
    assert [record["learning_rate"][1] for record in rollbacks(run)] == [1e-4, 5e-5]
    # the count and the rate are the run's, not the process's
    result = pretrain(resume=run)
    assert result.exit_code == 1
    assert "after 2 rollbacks" in result.output
    assert len(rollbacks(run)) == 2


def test_the_memory_of_a_diverged_fit_is_released_before_the_next(
    losses_by_step, tiny_overrides, tmp_path, monkeypatch
):
    pending, modules, honest = [8, 9], [], build.build_module

    def change(step, rows, loss):
        if step not in pending:
            return loss
        pending.remove(step)
        return loss * math.nan

    def build_module(*arguments, **options):
        assert [module() for module in modules] == [None] * len(modules)
        module = honest(*arguments, **options)
        modules.append(weakref.ref(module))
        return module

    losses_by_step(change)
    monkeypatch.setattr(build, "build_module", build_module)
    result = pretrain(*tiny_overrides, *ROLLBACK, f"run_dir={tmp_path / 'run'}")
    assert result.exit_code == 0, result.output
    assert len(modules) == 2


def test_the_weights_of_a_sharded_model_are_released(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.randn(2, 16)).sum().backward()
        optimizer.step()
        stores = [parameter.to_local().untyped_storage() for parameter in model.parameters()]
        assert all(store.nbytes() for store in stores)
        trainer = SimpleNamespace(optimizers=[optimizer], callbacks=[], datamodule=SimpleNamespace())
        training_run._release(trainer, model)
        assert not any(store.nbytes() for store in stores)
        assert not optimizer.state
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("when", ["in the step that diverges", "between the two fits"])
def test_a_signal_during_a_rollback_saves_and_stops_the_run(
    when, losses_by_step, tiny_overrides, tmp_path, monkeypatch
):
    """After one more step from the checkpoint gone back to; a second signal of either kind changes nothing."""
    pending, honest = [8, 9], training_run.roll_back

    def announce():
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)

    def change(step, rows, loss):
        if step not in pending:
            return loss
        pending.remove(step)
        if step == 9 and when == "in the step that diverges":
            announce()
        return loss * math.nan

    def roll_back(*arguments):
        if when == "between the two fits":
            announce()
        return honest(*arguments)

    losses_by_step(change)
    monkeypatch.setattr(training_run, "roll_back", roll_back)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    run = tmp_path / "run"
    try:
        assert pretrain(*tiny_overrides, *ROLLBACK, f"run_dir={run}").exit_code == 128 + signal.SIGUSR1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert len(rollbacks(run)) == 1
    assert latest_checkpoint(run / "checkpoints").name == "step=00000007.ckpt"
    assert pretrain(resume=run).exit_code == 0


def test_checkpoints_after_the_divergence_are_removed(losses_by_step, tiny_overrides, tmp_path):
    calls = []

    def change(step, rows, loss):
        calls.append(step)
        return loss * (math.nan if step in (7, 8, 9, 10) and calls.count(step) == 1 else 1.0)

    losses_by_step(change)
    run = tmp_path / "run"
    often = ["trainer.checkpoint_every_steps=1", "trainer.keep_checkpoints=9", "trainer.max_nonfinite_steps=4"]
    assert pretrain(*tiny_overrides, *ROLLBACK, *often, f"run_dir={run}").exit_code == 0
    (record,) = rollbacks(run)
    assert record["to_step"] == 5
    assert record["removed"] == [f"step={step:08d}.ckpt" for step in (9, 8, 7, 6)]


def test_a_divergence_before_the_first_checkpoint_ends_the_run(losses_by_step, tiny_overrides, tmp_path):
    losses_by_step(lambda step, rows, loss: loss * math.nan)
    result = pretrain(*tiny_overrides, *ROLLBACK, f"run_dir={tmp_path / 'run'}")
    assert result.exit_code == 1
    assert "there is no checkpoint at least 2 steps older to go back to" in result.output
    assert not (tmp_path / "run" / "rollbacks.jsonl").exists()


def wait_status(act):
    """Of a forked process that does it; a fork, so that everything is imported."""
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_rollback_killed_at_any_point_is_completed_by_the_resume(is_sharded, tmp_path):
    record = {"to_step": 3, "skipped_rows": [8, 16]}

    def prepared(name):
        folder = RunFolder(tmp_path / name)
        folder.checkpoints.mkdir(parents=True)
        folder.write_config("old")
        folder.write_rollback(1, {"to_step": 1, "skipped_rows": None})
        for step in (1, 3, 5, 7):
            path = checkpoint_path(folder.checkpoints, step)
            if is_sharded:
                path.mkdir()
            (path / "state.pt" if is_sharded else path).touch()
        link_best(folder.checkpoints, checkpoint_path(folder.checkpoints, 5))
        return folder

    def state(folder):
        there = {str(path.relative_to(folder.path)) for path in folder.path.rglob("*")}
        return there, folder.config.read_text(), folder.read_rollbacks()

    def killed_at(count, folder):
        left = [count]

        def look(event, arguments):
            if event in ("open", "os.rename", "os.remove", "shutil.rmtree") and str(folder.path) in str(arguments[0]):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(look)
        roll_back(folder, "new", record)
        os._exit(0)

    whole, untouched = prepared("whole"), state(prepared("untouched"))
    roll_back(whole, "new", record)
    wanted = state(whole)
    assert wanted[1] == "new"
    assert wanted[2][1:] == [{**record, "removed": ["step=00000007.ckpt", "step=00000005.ckpt"]}]
    assert not (whole.checkpoints / "best").is_symlink()
    num_recorded = 0
    for count in range(1, 100):
        folder = prepared(f"killed {count}")
        status = wait_status(partial(killed_at, count, folder))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        is_recorded = folder.rollback.is_file()
        num_recorded += is_recorded
        complete_rollback(folder)
        remove_partials(folder.checkpoints)
        for half_written in folder.path.glob("*.tmp"):
            half_written.unlink()
        after = state(folder)
        assert after == wanted or (not is_recorded and after == untouched)
    else:
        pytest.fail("the rollback was killed every time, so that its last moments were not tested")
    assert state(folder) == wanted
    assert num_recorded > 5


def test_a_run_killed_during_a_rollback_resumes_without_the_skipped_rows(losses_by_step, tiny_overrides, tmp_path):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    def change(step, rows, loss):
        return loss * (math.inf if set(rows) & set(range(56, 72)) else 1.0)

    losses_by_step(change)
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "write_rollback", killed)
        with pytest.raises(Killed):
            pretrain(*tiny_overrides, *ROLLBACK, "trainer.on_divergence.skip_rows=true", f"run_dir={run}")
    assert pretrain(resume=run).exit_code == 0
    (record,) = rollbacks(run)
    assert record["skipped_rows"] == [48, 72]
    assert load_file("pretrain", run / "config.yaml").optim.optimizer.learning_rate == 1e-4


def test_exactly_the_rows_before_the_divergence_are_skipped(losses_by_step, tiny_overrides, tmp_path):
    """The rows of steps 8 and 9 make the loss infinite at any rate: only leaving them out helps."""
    good = []

    def change(step, rows, loss):
        is_bad = bool(set(rows) & set(range(56, 72)))
        if not is_bad:
            good.append(rows)
        return loss * (math.inf if is_bad else 1.0)

    losses_by_step(change)
    run = tmp_path / "run"
    result = pretrain(*tiny_overrides, *ROLLBACK, "trainer.on_divergence.skip_rows=true", f"run_dir={run}")
    assert result.exit_code == 0, result.output
    (record,) = rollbacks(run)
    assert record["skipped_rows"] == [48, 72]  # from the checkpoint of step 6 to step 9
    # step 7, of rows 48 to 55, was taken once before
    assert [row for rows in good for row in rows] == [*range(56), *range(72, 120)]
    # a resume takes up the stream where it is, without them
    assert pretrain("trainer.max_steps=13", resume=run).exit_code == 0
    assert good[-1] == list(range(120, 128))


def test_positions_exclude_skipped_rows():
    assert [row_at(position, []) for position in range(3)] == [0, 1, 2]
    ranges = [(8, 12), (3, 5)]
    left = [row for row in range(40) if not any(start <= row < stop for start, stop in ranges)]
    assert [row_at(position, ranges) for position in range(20)] == left[:20]
    overlapping = [(3, 15), (8, 12), (10, 17)]
    left = [row for row in range(40) if not 3 <= row < 17]
    assert [row_at(position, overlapping) for position in range(20)] == left[:20]
    ranks = [
        list(MicroBatches(first=4, last=12, micro_batch_rows=2, rank=rank, world_size=2, skipped=ranges))
        for rank in range(2)
    ]
    left = [row for row in range(40) if not any(start <= row < stop for start, stop in ranges)]
    assert ranks == [[[left[4], left[6]], [left[8], left[10]]], [[left[5], left[7]], [left[9], left[11]]]]


def healthy_losses(steps, noise, seed):
    """A falling curve with noise whose tails are heavy, as the draws of t make them: Laplace."""
    rng = random.Random(seed)
    for step in range(steps):
        yield 3.5 + 5 * math.exp(-step / 80) + rng.choice((-1, 1)) * rng.expovariate(1 / noise)


def observed(losses, config=None):
    spikes = LossSpikes(config or SpikeConfig())
    for step, loss in enumerate(losses, 1):
        spikes.observe(step, loss)
    return spikes


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
def test_heavy_tailed_noise_causes_no_long_spike(noise):
    spikes = LossSpikes(SpikeConfig())
    longest = 0
    for step, loss in enumerate(healthy_losses(20_000, noise, seed=1), 1):
        spikes.observe(step, loss)
        longest = max(longest, spikes.steps)
    assert longest < Rollback().max_spike_steps / 4
    assert spikes.count <= 20  # of 20 000 steps


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
def test_a_spike_is_detected_at_its_first_step_and_its_end_is_logged(noise, caplog):
    losses = list(healthy_losses(600, noise, seed=2))
    for step in range(500, 520):
        losses[step] += 3.0
    before = observed(losses[:500])
    spikes = observed(losses[:501])
    assert (spikes.count, spikes.steps) == (before.count + 1, 1)
    spikes = observed(losses[:520])
    assert spikes.steps == 20
    caplog.clear()
    spikes.observe(521, losses[520])
    assert spikes.steps == 0
    assert "the loss spike of 20 steps is over" in caplog.text


def test_a_spike_of_a_whole_window_is_the_new_level():
    config = SpikeConfig(window=16)
    spikes = observed([3.0, 3.1] * 20 + [5.0, 5.1] * 8, config)
    assert (spikes.count, spikes.steps) == (1, 0)
    assert spikes.limit > 5.1
    spikes.observe(99, math.nan)
    assert (spikes.count, spikes.steps) == (1, 0)


def test_the_spike_detector_resumes_from_its_state():
    losses = list(healthy_losses(300, 0.05, seed=3))
    losses[250:280] = [9.0] * 30
    whole = observed(losses)
    first = observed(losses[:260])
    second = LossSpikes(SpikeConfig())
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step, loss in enumerate(losses[260:], 261):
        second.observe(step, loss)
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer/on_divergence=rolback"], "rollback"),
        (["trainer.on_divergence.name=resume"], "allowed are rollback, stop"),
        (
            ["trainer.on_divergence.max_spike_steps=0"],
            "trainer.on_divergence.max_spike_steps is 0: it must be 1 or more",
        ),
        (["trainer.on_divergence.max_spike_steps=128"], "max_spike_steps=128 is never reached"),
        ([ROLLBACK[0], "trainer.spikes.window=16"], "max_spike_steps=16 is never reached"),
        (["trainer.spikes.window=2"], "trainer.spikes.window is 2: it must be 8 steps or more"),
        (["trainer.spikes.threshold=0"], "trainer.spikes.threshold is 0.0: it must be above 0"),
        (
            [ROLLBACK[0], "trainer.on_divergence.learning_rate_factor=2"],
            "learning_rate_factor is 2.0: it must be in (0, 1]",
        ),
        ([ROLLBACK[0], "trainer.on_divergence.max_rollbacks=0"], "max_rollbacks is 0: it must be 1 or more"),
        ([ROLLBACK[0], "trainer.keep_checkpoints=1"], "needs trainer.keep_checkpoints of 2 or more"),
        ([ROLLBACK[0], "trainer.checkpoint_every_steps=10"], "needs trainer.keep_checkpoints of 4 or more"),
        ([ROLLBACK[0], "trainer.checkpoint_every_steps=29"], "needs trainer.keep_checkpoints of 3 or more"),
    ],
)
def test_contradictory_settings_are_rejected(overrides, message):
    with pytest.raises(UserError) as caught:
        load("pretrain", overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(("every", "keep"), [(10, 4), (15, 3), (30, 2), (1, 31)])
def test_retention_always_leaves_a_checkpoint_to_roll_back_to(every, keep):
    """And one less does not: seen 16 steps late, 16 steps back."""
    load("pretrain", [ROLLBACK[0], f"trainer.checkpoint_every_steps={every}", f"trainer.keep_checkpoints={keep}"])

    def always(keep):
        for seen_at in range(200, 300):
            steps = [step for step in range(1, seen_at) if step % every == 0][-keep:]
            if steps[0] > (seen_at - 16 + 1) - 16:
                return False
        return True

    assert always(keep)
    assert not always(keep - 1)


def test_checkpoints_are_listed_by_step(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    strays = {"mine.ckpt", "zzz.ckpt", "step=00000099 copy.ckpt", ".step=00000098.ckpt.partial"}
    for name in ("step=00000003.ckpt", "step=00000012.ckpt", *strays):
        (tmp_path / name).touch()
    assert latest_checkpoint(tmp_path).name == "step=00000012.ckpt"
    assert newest_checkpoint_until(tmp_path, 11).name == "step=00000003.ckpt"
    assert newest_checkpoint_until(tmp_path, 12).name == "step=00000012.ckpt"
    assert newest_checkpoint_until(tmp_path, 2) is None
    assert [path.name for path in remove_after(tmp_path, 3)] == ["step=00000012.ckpt"]
    assert {path.name for path in tmp_path.iterdir()} == {"step=00000003.ckpt", *strays}


PATCHED = """
import math

from lit_illada.cli import main
from lit_illada.objective.diffusion import DiffusionObjective

honest_corrupt, honest_loss = DiffusionObjective.corrupt, DiffusionObjective.loss
step, pending = 0, [8, 9]


def corrupt(self, batch, progress=0.0):
    global step
    step = round(progress * 12) + 1
    return honest_corrupt(self, batch, progress)


def loss(self, scores, noisy):
    honest = honest_loss(self, scores, noisy)
    if step not in pending or not honest.sum.requires_grad:
        return honest
    pending.remove(step)
    return type(honest)(honest.sum * math.nan, honest.count, honest.bins)


DiffusionObjective.corrupt, DiffusionObjective.loss = corrupt, loss
main()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_are_rolled_back_together(strategy, tiny_overrides, tmp_path):
    """As with one process: the ranks continue, with the weights of a manual resume."""
    script = tmp_path / "diverging.py"
    script.write_text(PATCHED)
    two = [
        *tiny_overrides,
        *ROLLBACK,
        f"trainer.parallel.strategy={strategy}",
        "trainer.devices=2",
        "trainer.micro_batch_rows=4",
        "trainer.keep_checkpoints=9",
    ]

    def in_processes(*words):
        command = [sys.executable, *words]
        root = str(Path(__file__).parents[3])
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr

    by_hand, run = tmp_path / "by hand", tmp_path / "run"
    in_processes("-m", "lit_illada", "pretrain", *two, f"run_dir={by_hand}")
    remove_after(by_hand / "checkpoints", 6)
    in_processes("-m", "lit_illada", "pretrain", "--resume", str(by_hand), "optim.optimizer.learning_rate=1e-4")

    in_processes(str(script), "pretrain", *two, f"run_dir={run}")
    (record,) = rollbacks(run)
    assert (record["from_step"], record["to_step"], record["learning_rate"]) == (9, 6, [2e-4, 1e-4])
    pids = {json.loads(path.read_text())["pid"] for path in (run / "ranks").glob("rank-?.json")}
    assert len(pids) == 2
    one, other = (Weights(read_checkpoint(latest_checkpoint(path / "checkpoints"))) for path in (by_hand, run))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)

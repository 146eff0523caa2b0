"""Runs stopped under one parallel strategy resume under another exactly.

Processes are forked from this one, which has imported everything, with the environment that torchrun gives them.
"""

import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from lightning.pytorch.utilities import rank_zero_only

import lit_illada.commands.pretrain  # noqa: F401  before the forks, so that everything is imported once
from lit_illada.checkpoints.open import open_checkpoint
from lit_illada.cli import main
from lit_illada.objective.diffusion import DiffusionObjective
from lit_illada.training.checkpointing.files import latest_checkpoint
from lit_illada.training.checkpointing.reading import Weights, read_checkpoint

MAX_STEPS = 9
FSDP = "trainer.parallel.strategy=fsdp"
PAIRS = "trainer.parallel.shard_size=2"
TENSOR = "trainer.parallel.tensor_parallel=2"
# processes, how many of them have rows of their own, overrides
WAYS = {
    "one": (1, 1, []),
    "ddp": (2, 2, []),
    "fsdp": (2, 2, [FSDP]),
    "fsdp of one": (1, 1, [FSDP]),
    "fsdp of four": (4, 4, [FSDP]),
    "hybrid": (4, 4, [FSDP, PAIRS]),
    "tensor": (2, 1, [FSDP, TENSOR]),
    "tensor and fsdp": (4, 2, [FSDP, TENSOR]),
}
DEFAULTS = [
    "trainer.parallel.strategy=auto",
    "trainer.parallel.shard_size=null",
    "trainer.parallel.tensor_parallel=1",
]


def pretrain(way, arguments, folder, stop_at=None):
    """Run the command in the strategy's number of processes; stop_at: step after which it is signalled to stop."""
    processes, data_ranks, options = WAYS[way]
    sizes = [f"trainer.devices={processes}", f"trainer.micro_batch_rows={8 // data_ranks}"]
    command = ["pretrain", *arguments, *DEFAULTS, *sizes, *options]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context, log = multiprocessing.get_context("fork"), folder / "log.txt"
    started = [
        context.Process(target=join, args=(rank, processes, port, command, stop_at, log)) for rank in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(280)
        assert process.exitcode == (0 if stop_at is None else 128 + signal.SIGTERM), log.read_text()


def join(rank, processes, port, command, stop_at, log):
    sys.stdout = sys.stderr = log.open("a", buffering=1, encoding="utf-8")
    if processes > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
        sizes = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "elastic"}
        os.environ.update({key: str(value) for key, value in {**places, **sizes, **address}.items()})
        rank_zero_only.rank = rank  # which Lightning has read already
    honest = DiffusionObjective.corrupt

    def interrupted(self, batch, progress=0.0):
        if stop_at is not None and round(progress * MAX_STEPS) == stop_at - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(self, batch, progress)

    DiffusionObjective.corrupt = interrupted
    main(command, standalone_mode=False)


def through(ways, overrides, folder):
    """A run of as many steps under each of the ways, one after the other."""
    run, last = folder / "run", len(ways) - 1
    for number, way in enumerate(ways):
        begin = ["--resume", str(run)] if number else [*overrides, f"run_dir={run}"]
        pretrain(way, begin, folder, None if number == last else (number + 1) * MAX_STEPS // len(ways))
        assert latest_checkpoint(run / "checkpoints").is_dir() == (FSDP in WAYS[way][2])
    return run


def content_of(run):
    """The newest checkpoint's weights and moments, whole, and the rest of what a resume takes over."""
    content = read_checkpoint(latest_checkpoint(Path(run) / "checkpoints"))
    tensors = dict(Weights(content))
    for name, state in content["optimizer_states"][0]["state"].items():
        tensors |= {f"{name}, {key}": value[...] for key, value in state.items()}
    return tensors, content


def assert_same(run, other):
    """But for the order of sums over rows. The scale is each tensor's own, so that no moments can be each other's."""
    (one, content), (two, content_too) = content_of(run), content_of(other)
    assert one.keys() == two.keys()
    assert content["global_step"] == content_too["global_step"] == MAX_STEPS
    assert content["PackedDataModule"] == content_too["PackedDataModule"]
    schedules = [each["lr_schedulers"][0] for each in (content, content_too)]
    assert schedules[0].pop("best") == pytest.approx(schedules[1].pop("best"), rel=1e-4)
    assert schedules[0] == schedules[1]
    for name, value in one.items():
        difference = (value.double() - two[name].double()).norm() / value.double().norm()
        assert difference < 2e-3, f"{name}: {difference:.1e}"


@pytest.fixture(scope="module")
def overrides(tiny_overrides):
    """A run whose schedule goes by the validations, and whose mask ratios go by what they have seen."""
    return [
        *tiny_overrides,
        f"trainer.max_steps={MAX_STEPS}",
        "model.num_key_value_heads=2",
        "optim/schedule=reactive",
        "optim.schedule.patience=1",
        "optim.schedule.min_improvement=9",
        "optim.schedule.warmup_steps=2",
        "objective=variance_optimal",
        "trainer.val_every_steps=3",
        "trainer.keep_checkpoints=9",
    ]


@pytest.fixture(scope="module")
def undisturbed(overrides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return through(["one"], overrides, folder)


def test_a_run_moves_from_one_process_to_two_and_back_unchanged(overrides, undisturbed, tmp_path):
    """And what the two have saved is opened by every command, and converted, as what one has."""
    run = through(["one", "fsdp", "one"], overrides, tmp_path)
    assert_same(undisturbed, run)
    shared = run / "checkpoints" / "step=00000006.ckpt"
    assert sorted(path.name for path in shared.iterdir()) == [
        "checksums-00000-of-00002.json",
        "checksums-00001-of-00002.json",
        "parts-00000-of-00002.safetensors",
        "parts-00001-of-00002.safetensors",
        "state.pt",
    ]
    result = CliRunner().invoke(main, ["convert", str(shared), str(tmp_path / "out"), "--to", "lit"])
    assert result.exit_code == 0, result.output
    weights = Weights(read_checkpoint(shared))
    converted = open_checkpoint(tmp_path / "out").tensors
    assert all(torch.equal(converted[name], weights[f"model.{name}"]) for name in converted)
    short = ["generation.max_new_tokens=16", "generation.block_length=8", "generation.num_steps=4"]
    texts = [
        CliRunner().invoke(main, ["generate", str(path), "--prompt", "alpha", *short], catch_exceptions=False).stdout
        for path in (shared, tmp_path / "out")
    ]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_every_strategy_resumes_where_another_stopped(overrides, undisturbed, tmp_path):
    ways = ["ddp", "fsdp", "hybrid", "tensor", "one", "tensor and fsdp", "fsdp of one", "fsdp of four", "ddp"]
    assert_same(undisturbed, through(ways, overrides, tmp_path))

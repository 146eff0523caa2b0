"""Parallel strategies give the same run: weights, gradient norms and noise."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.device_mesh import init_device_mesh

from lit_illada.batch import Layout
from lit_illada.cli import main
from lit_illada.config import load
from lit_illada.errors import UserError
from lit_illada.model.config import ModelConfig
from lit_illada.model.initial import InitialWeights
from lit_illada.model.transformer import Transformer
from lit_illada.training.checkpointing.files import latest_checkpoint
from lit_illada.training.checkpointing.reading import map_leaves, read_checkpoint
from lit_illada.training.checkpointing.sharded import StoredTensor
from lit_illada.training.config.optim import AdamWConfig, MuonConfig
from lit_illada.training.config.parallel import ActivationCheckpointing, ParallelConfig, Strategy
from lit_illada.training.distributed.gradients import scale, total_norm
from lit_illada.training.distributed.parallel import shard
from lit_illada.training.optim import build_optimizer

TINY = ModelConfig(50, 32, 64, 2, 4, 2, attention_bias=True)
# the mesh's dimensions: copies, parts of a copy, devices that share its rows
MESHES = {
    "fsdp 2": (1, 2, 1),
    "hybrid 2 × 2": (2, 2, 1),
    "tensor 2": (1, 1, 2),
    "fsdp 2 × tensor 2": (1, 2, 2),
}
OPTIMIZERS = {"adamw": AdamWConfig(learning_rate=0.01, eps=1e-4), "muon": MuonConfig(learning_rate=0.01, eps=1e-4)}


def rows(rank, num_ranks):
    """The rank's rows of eight."""
    ids = torch.randint(50, (8, 12), generator=torch.Generator().manual_seed(1))
    return ids.chunk(num_ranks)[rank]


def train(model, optimizer, ids, num_steps):
    """The gradient norms of the steps; the mean over ranks of equal shares is that over all rows."""
    norms = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(ids, Layout.whole_rows(*ids.shape), None, ids).nll.mean().backward()
        gradients = [p.grad for p in model.parameters()]
        norms.append(float(total_norm(gradients)))
        scale(gradients, 0.5)
        optimizer.step()
    return norms


def whole(model):
    """A copy: what is cut into one part is gathered without one."""
    return {name: p.full_tensor().clone() for name, p in model.state_dict().items()}


def _train_on_mesh(rank, folder, shape, optimizer, num_steps, options):
    torch.set_num_threads(1)
    count = shape[0] * shape[1] * shape[2]
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard", "tensor"))
    with torch.device("meta"):
        model = Transformer(TINY)
    weights = InitialWeights(model, TINY, seed=3)
    config = ParallelConfig(Strategy.fsdp, **options)
    shard(model, mesh, config, param_dtype=torch.float32, weights=weights, is_compiled=False)
    found = {"initial": whole(model), "held": sum(p.to_local().numel() for p in model.parameters())}
    ids = rows(rank // shape[2], shape[0] * shape[1])
    found["norms"] = train(model, build_optimizer(model, OPTIMIZERS[optimizer]), ids, num_steps)
    found["trained"] = whole(model)
    if rank == count - 1:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


def on_mesh(folder, shape, optimizer="adamw", num_steps=3, **options):
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("fork")
    arguments = (folder, shape, optimizer, num_steps, options)
    count = shape[0] * shape[1] * shape[2]
    processes = [context.Process(target=_train_on_mesh, args=(rank, *arguments)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    return torch.load(folder / "found.pt", weights_only=True)


def one_device(optimizer="adamw", num_steps=3):
    model = Transformer(TINY)
    model.init_weights(3)
    initial = {name: p.clone() for name, p in model.state_dict().items()}
    norms = train(model, build_optimizer(model, OPTIMIZERS[optimizer]), rows(0, 1), num_steps)
    return {"initial": initial, "norms": norms, "trained": model.state_dict()}


@pytest.mark.parametrize("mesh", MESHES)
def test_a_sharded_model_starts_and_trains_as_on_one_device(mesh, tmp_path):
    """AdamW's eps is far above the gradients' rounding of 1e-9: it changes a step of 0.01 by 1e-7, not by all of it."""
    expected, found = one_device(), on_mesh(tmp_path, MESHES[mesh])
    assert all(torch.equal(found["initial"][name], value) for name, value in expected["initial"].items())
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-5)
    for name, value in expected["trained"].items():
        torch.testing.assert_close(found["trained"][name], value, atol=2e-6, rtol=1e-5)
        assert (value - expected["initial"][name]).abs().max() > 2e-4, name
    parts = MESHES[mesh][1] * MESHES[mesh][2]
    total = sum(value.numel() for value in expected["initial"].values())
    # tensor parallelism leaves embedding and norms whole
    assert found["held"] < (0.52 if parts > 1 else 1.01) * total + (50 * 32 + 5 * 32 if mesh == "tensor 2" else 0)


def test_muon_updates_sharded_matrices_like_whole_ones(tmp_path):
    """Muon rounds to bfloat16 internally, hence the tolerance; updates of separate parts would differ far more."""
    expected, found = one_device("muon", 1), on_mesh(tmp_path, (1, 2, 1), "muon", 1)
    for name, value in expected["trained"].items():
        change = (value - expected["initial"][name]).norm()
        assert (found["trained"][name] - value).norm() < 0.05 * change, name


def test_sharded_blocks_with_activation_checkpointing_train_the_same(tmp_path):
    plain = on_mesh(tmp_path / "plain", (1, 2, 1))
    for which in (ActivationCheckpointing.selective, ActivationCheckpointing.full):
        found = on_mesh(tmp_path / which, (1, 2, 1), activation_checkpointing=which)
        assert found["norms"] == plain["norms"]
        assert all(torch.equal(found["trained"][name], value) for name, value in plain["trained"].items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.parallel.strategy=ddq"], "did you mean 'ddp'"),
        (["trainer.parallel.shard_size=0"], "trainer.parallel.shard_size is 0: it must be 1 or more"),
        (["trainer.parallel.strategy=ddp", "trainer.parallel.shard_size=2"], "set trainer.parallel.strategy=fsdp"),
        (["trainer.parallel.shard_size=3"], "shard_size=3 does not divide devices × num_nodes = 4"),
        (["trainer.parallel.tensor_parallel=3"], "tensor_parallel=3 does not divide devices × num_nodes = 4"),
        (["trainer.parallel.tensor_parallel=4", "model.num_key_value_heads=2"], "model.num_key_value_heads=2"),
        (["trainer.parallel.tensor_parallel=2", "optim=muon"], "use optim=adamw"),
        (["trainer.parallel.tensor_parallel=2", "model.intermediate_size=42"], "set it to 44"),
        (["trainer.parallel.strategy=fsdp", "trainer.ema_decay=0.9"], "set trainer.ema_decay=null"),
        (["trainer.parallel.tensor_parallel=2", "trainer.micro_batch_rows=24"], "4 × 1 / 2 = 48"),
    ],
)
def test_an_invalid_parallel_config_is_rejected(overrides, message):
    four = ["trainer.devices=4", "trainer.micro_batch_rows=8", "model.num_attention_heads=8"]
    with pytest.raises(UserError) as caught:
        load("pretrain", [*four, *overrides])
    assert message in str(caught.value)


def test_an_adapter_rejects_tensor_parallelism():
    model = load("pretrain", ["model.vocab_size=300"]).model
    cut = ["adapter=lora", "trainer.devices=2", "trainer.parallel.tensor_parallel=2", "trainer.micro_batch_rows=2"]
    with pytest.raises(UserError, match="adapters are not sharded by heads"):
        load("sft", cut, {"model": {**vars(model)}, "init_from": "nowhere"})


@pytest.mark.parametrize(
    ("config", "world_size", "strategy", "shape"),
    [
        (ParallelConfig(), 1, None, (1, 1, 1)),
        (ParallelConfig(), 8, Strategy.ddp, (1, 8, 1)),
        (ParallelConfig(shard_size=4), 8, Strategy.fsdp, (2, 4, 1)),
        (ParallelConfig(tensor_parallel=2), 8, Strategy.fsdp, (1, 4, 2)),
        (ParallelConfig(Strategy.fsdp, shard_size=2, tensor_parallel=2), 8, Strategy.fsdp, (2, 2, 2)),
        (ParallelConfig(Strategy.fsdp), 1, Strategy.fsdp, (1, 1, 1)),
        (ParallelConfig(Strategy.ddp), 1, None, (1, 1, 1)),
    ],
)
def test_sizes_give_the_strategy_and_its_mesh(config, world_size, strategy, shape):
    assert config.resolve(world_size) == strategy
    assert config.mesh_shape(world_size) == shape


BIG_EPS = ["optim.optimizer.eps=1e-4", "optim.optimizer.learning_rate=0.005"]
TWENTY = [
    *BIG_EPS,
    "objective=llada",
    "objective.normaliser=masked",
    "model.num_key_value_heads=2",
    "trainer.max_steps=20",
    "trainer.val_every_steps=20",
    "trainer.checkpoint_every_steps=20",
    "trainer.log_every_steps=1",
    "samples.prompts=['alpha ']",
    "samples.generation.max_new_tokens=32",
]
FSDP = "trainer.parallel.strategy=fsdp"
SPREADS = {
    "ddp × 2": ["trainer.devices=2", "trainer.micro_batch_rows=4"],
    "fsdp × 2": [FSDP, "trainer.devices=2", "trainer.micro_batch_rows=4"],
    "fsdp × 1, accumulating": [FSDP, "trainer.micro_batch_rows=4"],
    "fsdp × 2, accumulating": [FSDP, "trainer.devices=2", "trainer.micro_batch_rows=2"],
    "hybrid 2 × 2": [FSDP, "trainer.devices=4", "trainer.parallel.shard_size=2", "trainer.micro_batch_rows=2"],
    "hybrid 2 × 2, reducing always": [
        FSDP,
        "trainer.devices=4",
        "trainer.parallel.shard_size=2",
        "trainer.micro_batch_rows=1",
        "trainer.parallel.reduce_every_micro_batch=true",
    ],
    "tensor 2": ["trainer.devices=2", "trainer.parallel.tensor_parallel=2"],
    "tensor 2 × fsdp 2": ["trainer.devices=4", "trainer.parallel.tensor_parallel=2", "trainer.micro_batch_rows=4"],
}
FAST = ("fsdp × 2",)  # test_elastic trains with DDP
SLOW = [pytest.mark.slow, pytest.mark.timeout(1200)]


def run(command, *arguments):
    """The command in a process of its own, as a shell would start it: it starts the others."""
    line = [sys.executable, "-m", "lit_illada.cli", command, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def last(folder):
    """The newest checkpoint, tensors that several processes wrote made whole."""
    content = read_checkpoint(latest_checkpoint(Path(folder) / "checkpoints"))
    return map_leaves(content, lambda _, leaf: leaf[...] if isinstance(leaf, StoredTensor) else leaf)


def scalars(folder, tag):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


@pytest.fixture(scope="module")
def reference(tiny_overrides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "alone"
    arguments = ["pretrain", *tiny_overrides, *TWENTY, f"run_dir={folder}"]
    assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
    return folder


@pytest.mark.parametrize("spread", [pytest.param(name, marks=[] if name in FAST else SLOW) for name in SPREADS])
def test_a_run_is_the_same_under_every_strategy(spread, reference, tiny_overrides, tmp_path):
    """20 steps: the losses, which noise and weights decide, the gradients' norms, the weights and AdamW's moments.

    Float32, sums in another order: the gradients differ by about 1e-8. AdamW's eps keeps that below 1e-6 of weight a
    step; a mask drawn otherwise changes the loss by more than 1e-2.
    """
    folder = tmp_path / "run"
    run("pretrain", *tiny_overrides, *TWENTY, *SPREADS[spread], f"run_dir={folder}")
    for tag in ("train/loss", "train/gradient_norm", "val/nll_bound", "val/nll_bound_stderr"):
        expected = scalars(reference, tag)
        assert len(expected) == (2 if "val" in tag else 20)
        assert scalars(folder, tag) == pytest.approx(expected, rel=1e-4), tag
    expected, found = last(reference), last(folder)
    assert list(expected["state_dict"]) == list(found["state_dict"])
    for name, weight in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], weight, atol=2e-5, rtol=1e-4)
    moments, theirs = (content["optimizer_states"][0] for content in (expected, found))
    assert [g["params"] for g in moments["param_groups"]] == [g["params"] for g in theirs["param_groups"]]
    for number, state in moments["state"].items():
        for name, moment in state.items():
            torch.testing.assert_close(theirs["state"][number][name], moment, atol=1e-5, rtol=1e-3)
    # only equal weights, multiplied the same way, surely choose the same among tokens as likely as untrained ones are
    (expected_texts, texts) = ((path / "samples.txt").read_text().split("=== step ") for path in (reference, folder))
    assert (
        [text.split("\n")[0] for text in texts] == [text.split("\n")[0] for text in expected_texts] == ["", "0", "20"]
    )
    assert texts[1] == expected_texts[1] or "tensor" in spread
    figures = [json.loads((path / "summary.json").read_text())["end"] for path in (reference, folder)]
    assert figures[0]["perf/tokens"] == figures[1]["perf/tokens"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_a_run_resumes_under_another_strategy(optim, tiny_overrides, tmp_path):
    """From one device to two that share the model, and back: the same run, but for rounding."""
    constant = ["optim/schedule=wsd", "optim.schedule.final_factor=1.0", "optim.schedule.warmup_steps=2"]
    steps = ["trainer.val_every_steps=4", "trainer.checkpoint_every_steps=4"]
    overrides = [*tiny_overrides, f"optim={optim}", *constant, *BIG_EPS[:1], *steps]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run("pretrain", *overrides, f"run_dir={whole}")
    run("pretrain", *overrides, f"run_dir={parts}", "trainer.max_steps=4")
    two = ["trainer.devices=2", "trainer.micro_batch_rows=4", FSDP]
    run("pretrain", "--resume", parts, "trainer.max_steps=8", *two)
    one = ["trainer.devices=1", "trainer.micro_batch_rows=8", "trainer.parallel.strategy=auto"]
    run("pretrain", "--resume", parts, "trainer.max_steps=12", *one)
    expected, found = last(whole), last(parts)
    for name, weight in expected["state_dict"].items():
        # Muon rounds its updates to bfloat16
        atol = 1e-5 if optim == "adamw" else 0.05 * float(weight.abs().max())
        torch.testing.assert_close(found["state_dict"][name], weight, atol=atol, rtol=1e-3)
    assert scalars(parts, "val/nll_bound")[12] == pytest.approx(scalars(whole, "val/nll_bound")[12], rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_fine_tuning_is_the_same_with_a_sharded_model(adapter, tiny_overrides, tmp_path):
    """It begins with given weights, of which each rank takes its part, and every rank helps to answer."""
    base = tmp_path / "base"
    short = ["trainer.max_steps=2", "trainer.val_every_steps=2", "model.max_position_embeddings=512"]
    run("pretrain", *tiny_overrides, *short, f"run_dir={base}")
    tuning = [
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        "trainer.max_steps=4",
        "trainer.batch_rows=4",
        "trainer.val_every_steps=4",
        "trainer.checkpoint_every_steps=4",
        "trainer.val_rows=4",
        "trainer.val_draws=1",
        "optim.schedule.warmup_steps=1",
        "optim.optimizer.eps=1e-4",
        "sft_data.row_length=256",
        "sft_data.source.num_train=64",
        "sft_data.source.num_validation=16",
        "sft_data.source.num_harder=16",
        "evaluation.num_examples=3",
        "evaluation.generation.max_new_tokens=16",
        "evaluation.generation.block_length=8",
        "evaluation.generation.num_steps=4",
        f"adapter={adapter}",
    ]
    single, cut = tmp_path / "single", tmp_path / "cut"
    run("sft", base, *tuning, "trainer.micro_batch_rows=4", f"run_dir={single}")
    run("sft", base, *tuning, "trainer.micro_batch_rows=2", "trainer.devices=2", FSDP, f"run_dir={cut}")
    expected, found = last(single)["state_dict"], last(cut)["state_dict"]
    assert list(expected) == list(found)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=1e-4)
    assert (cut / "answers.jsonl").read_text() == (single / "answers.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_sharded_bfloat16_compiled_and_recomputed_blocks_train(tiny_overrides, tmp_path):
    """The loss falls as in float32, within what bfloat16 rounds."""
    options = [FSDP, "trainer.devices=2", "trainer.micro_batch_rows=4", "trainer.precision=bf16-mixed"]
    faster = ["trainer.compile=true", "trainer.parallel.activation_checkpointing=selective"]
    fast = ["optim.optimizer.learning_rate=0.01"]
    runs = {"plain": [], "cut": [*options, *faster]}
    bounds = {}
    for name, overrides in runs.items():
        folder = tmp_path / name
        run("pretrain", *tiny_overrides, *fast, *overrides, f"run_dir={folder}")
        bounds[name] = scalars(folder, "val/nll_bound")
    assert bounds["cut"][12] < bounds["cut"][0] - 0.5
    assert bounds["cut"][12] == pytest.approx(bounds["plain"][12], rel=0.02)
    saved = last(tmp_path / "cut")["state_dict"]
    assert all(weight.dtype is torch.float32 for weight in saved.values() if weight.is_floating_point())

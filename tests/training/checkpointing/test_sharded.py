"""Checkpoints of any strategy load bit for bit under any other; incomplete ones are rejected."""

import ast
import multiprocessing
import os
import pickle
import re
import shutil

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lit_illada.errors import UserError
from lit_illada.training.checkpointing import files as checkpoint
from lit_illada.training.checkpointing import writer as checkpoint_writer
from lit_illada.training.checkpointing.files import (
    STATE_FILE,
    checksums_file,
    is_checkpoint,
    latest_checkpoint,
    partial_of,
    parts_file,
    remove_checkpoint,
    remove_partials,
)
from lit_illada.training.checkpointing.portable import (
    load_model_state,
    load_optimizer_state,
    model_state,
    optimizer_state,
)
from lit_illada.training.checkpointing.reading import Weights, read_checkpoint
from lit_illada.training.checkpointing.sharded import open_parts
from lit_illada.training.checkpointing.writer import CheckpointWriter

# (processes, how many copies of the model they hold)
WAYS = {"whole": (1, 1), "cut in two": (2, 1), "two copies cut in two": (4, 2)}


def make(way="whole"):
    """A model whose sides nothing divides, and its optimizer, whose groups are in another order than the parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 7))
    processes, copies = WAYS[way]
    if processes > 1:
        mesh = init_device_mesh("cpu", (copies, processes // copies), mesh_dim_names=("replicate", "shard"))
        for part in (*model, model):
            fully_shard(part, mesh=mesh["shard"] if copies == 1 else mesh)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices}]
    # fused, it rounds the last few numbers of every piece otherwise than the rest
    return model, torch.optim.AdamW(groups, lr=0.1, foreach=False)


def train(model, optimizer, first, last):
    """Every process takes the same rows: the mean of equal gradients is the gradient, whatever the way."""
    for step in range(first, last):
        rows = torch.randn(4, 7, generator=torch.Generator().manual_seed(step))
        model(rows).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def save(path, model, optimizer):
    writer = CheckpointWriter(is_async=True)
    content = {
        "global_step": 3,
        "state_dict": model_state(model),
        "optimizer_states": [optimizer_state(optimizer, model)],
    }
    writer.save_checkpoint(content, path)
    train(model, optimizer, 50, 51)  # what was taken over stays as it was
    writer.wait()
    assert writer.error is None
    if dist.is_initialized():
        dist.barrier()
    writer.publish()


def take_over(path, model, optimizer):
    content = read_checkpoint(path)
    load_model_state(model, content["state_dict"])
    load_optimizer_state(optimizer, model, content["optimizer_states"][0])


def everything(model, optimizer):
    """Weights and optimizer states, whole, by name."""
    states = optimizer_state(optimizer, model)["state"]
    named = dict(model_state(model)) | {
        f"{n}/{key}": value for n, state in states.items() for key, value in state.items()
    }
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in named.items()}


def run(way, task, folder):
    """The task in as many processes as the way has, each forked from this one."""
    context, processes = multiprocessing.get_context("fork"), WAYS[way][0]
    if processes == 1:
        return task(way, folder)
    store = folder / f"store-{os.urandom(4).hex()}"
    started = [
        context.Process(target=in_group, args=(n, processes, store, way, task, folder)) for n in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(240)
        assert process.exitcode == 0


def in_group(rank, processes, store, way, task, folder):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
    task(way, folder)
    dist.destroy_process_group()


def save_after_three_steps(way, folder):
    model, optimizer = make(way)
    train(model, optimizer, 0, 3)
    save(folder / f"{way}.ckpt", model, optimizer)


def go_on_from_every_other(way, folder):
    for source in WAYS:
        model, optimizer = make(way)
        take_over(folder / f"{source}.ckpt", model, optimizer)
        train(model, optimizer, 3, 6)
        found = everything(model, optimizer)
        if not dist.is_initialized() or dist.get_rank() == 0:
            torch.save(found, folder / f"{source} to {way}.pt")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a checkpoint of each way, all of the same step."""
    folder = tmp_path_factory.mktemp("ways")
    for way in WAYS:
        run(way, save_after_three_steps, folder)
    return folder


@pytest.mark.parametrize("after", WAYS)
def test_a_run_resumes_bit_for_bit_under_any_other_strategy(after, saved):
    undisturbed = make()
    train(*undisturbed, 0, 6)
    wanted = everything(*undisturbed)
    run(after, go_on_from_every_other, saved)
    for before in WAYS:
        found = torch.load(saved / f"{before} to {after}.pt")
        assert found.keys() == wanted.keys()
        different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
        assert not different, f"{before} to {after}: {different}"


def test_every_strategy_saves_the_same_content(saved):
    whole = Weights(read_checkpoint(saved / "whole.ckpt"))
    for way in WAYS:
        content = read_checkpoint(saved / f"{way}.ckpt")
        weights = Weights(content)
        assert content["global_step"] == 3
        assert weights.shapes == {name: tuple(value.shape) for name, value in whole.items()}
        assert all(torch.equal(weights[name], whole[name]) for name in whole)


def save_and_tell_what_was_synced(way, folder):
    """Each process leaves a file: (folder synced, what was in it) by turns."""
    synced, honest = [], checkpoint.sync_folder

    def sync_folder(path):
        synced.append((path.name, sorted(each.name for each in path.iterdir())))
        honest(path)

    checkpoint.sync_folder = checkpoint_writer.sync_folder = sync_folder
    (folder / "out").mkdir(exist_ok=True)
    model, optimizer = make(way)
    train(model, optimizer, 0, 3)
    save(folder / "out" / "step=00000003.ckpt", model, optimizer)
    (folder / f"synced-{dist.get_rank()}").write_text(repr(synced))


def test_file_names_are_durable_before_a_checkpoint_becomes_visible(tmp_path):
    """Every process syncs the folder after its own file, the first that of all files before it is renamed."""
    run("cut in two", save_and_tell_what_was_synced, tmp_path)
    first, second = (ast.literal_eval((tmp_path / f"synced-{rank}").read_text()) for rank in range(2))
    partial, whole = ".step=00000003.ckpt.partial", "step=00000003.ckpt"
    own, all_files, renamed = first
    assert own[0] == all_files[0] == partial
    assert {parts_file(0, 2), STATE_FILE} <= set(own[1])
    checksums = {checksums_file(rank, 2) for rank in range(2)}
    assert set(all_files[1]) == {parts_file(0, 2), parts_file(1, 2), STATE_FILE, *checksums}
    assert renamed == ("out", [whole])
    assert [name for name, _ in second] == [partial]
    assert parts_file(1, 2) in second[0][1]


def test_each_replicated_part_is_written_once(saved):
    files = sorted((saved / "two copies cut in two.ckpt").glob("parts-*"))
    sizes = {name: tensor.shape for name, tensor in open_parts(files).items()}
    total = sum(torch.Size(shape).numel() for shape in sizes.values()) * 4
    header = 8192
    assert len(files) == 4
    assert total <= sum(file.stat().st_size for file in files) < total + 4 * header
    assert all(open_parts([file]) for file in files)


def test_a_box_is_read_across_parts(saved):
    content = read_checkpoint(saved / "cut in two.ckpt")
    whole = read_checkpoint(saved / "whole.ckpt")["state_dict"]["2.weight"]
    stored = content["state_dict"]["2.weight"]
    assert torch.equal(stored[...], whole)
    assert torch.equal(stored[slice(1, 6), slice(2, 4)], whole[1:6, 2:4])
    assert torch.equal(stored[slice(6, 7), slice(0, 5)], whole[6:7])


def test_states_numbered_by_an_older_version_are_loaded(tmp_path):
    model, optimizer = make()
    train(model, optimizer, 0, 3)
    again = make()
    load_model_state(again[0], model.state_dict())
    load_optimizer_state(again[1], again[0], optimizer.state_dict())
    train(model, optimizer, 3, 6)
    train(*again, 3, 6)
    assert all(torch.equal(value, everything(*again)[name]) for name, value in everything(model, optimizer).items())


class Packing(torch.optim.AdamW):
    """Saves its first moment in a form of its own, as optimizers with states of few bits do."""

    def state_dict(self):
        saved = super().state_dict()
        packed = {n: {**state, "exp_avg": {"twice": state["exp_avg"] * 2}} for n, state in saved["state"].items()}
        return {**saved, "state": packed}

    def load_state_dict(self, state_dict):
        states = {n: {**state, "exp_avg": state["exp_avg"]["twice"] / 2} for n, state in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": states})


def test_an_optimizer_with_its_own_state_format_is_saved_and_loaded_in_it(tmp_path):
    model, plain = make()
    optimizer = Packing(plain.param_groups)
    train(model, optimizer, 0, 3)
    torch.save({"optimizer": optimizer_state(optimizer, model)}, tmp_path / "step=00000003.ckpt")
    again, plain = make()
    load_model_state(again, model_state(model))
    other = Packing(plain.param_groups)
    load_optimizer_state(other, again, read_checkpoint(tmp_path / "step=00000003.ckpt")["optimizer"])
    train(model, optimizer, 3, 6)
    train(again, other, 3, 6)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_optimizer_states_keep_their_dtype():
    model, optimizer = make()
    train(model, optimizer, 0, 1)
    saved = optimizer_state(optimizer, model)
    for state in saved["state"].values():
        state["exp_avg"] = state["exp_avg"].bfloat16()
    load_optimizer_state(optimizer, model, saved)
    assert all(state["exp_avg"].dtype is torch.bfloat16 for state in optimizer.state.values())


def test_another_model_or_other_trained_weights_are_rejected(saved):
    content = read_checkpoint(saved / "cut in two.ckpt")
    other = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5))
    with pytest.raises(UserError, match=r"only one of the two has 2\.bias"):
        load_model_state(other, content["state_dict"])
    narrow = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 6))
    with pytest.raises(UserError, match=r"holds 2\.weight as \(7, 5\), this run as \(6, 5\)"):
        load_model_state(narrow, content["state_dict"])
    model, _ = make()
    with pytest.raises(UserError, match=r"optimizer trains .*, this run's does not"):
        load_optimizer_state(torch.optim.AdamW([model[0].weight]), model, content["optimizer_states"][0])


def test_a_folder_with_missing_or_truncated_parts_is_rejected(saved, tmp_path):
    path = tmp_path / "step=00000003.ckpt"
    for damage in ("missing", "half"):
        path.mkdir(exist_ok=True)
        for file in (saved / "cut in two.ckpt").iterdir():
            (path / file.name).write_bytes(file.read_bytes())
        last = max(path.glob("parts-*"))
        last.unlink() if damage == "missing" else os.truncate(last, last.stat().st_size // 2)
        with pytest.raises(UserError, match=rf"{last.name}: (missing|damaged)"):
            read_checkpoint(path)


def test_a_damaged_part_is_rejected_by_the_process_that_verifies_it(saved, tmp_path):
    names = sorted(file.name for file in (saved / "cut in two.ckpt").iterdir())
    assert len(names) == 5
    for name in names:
        damaged = shutil.copytree(saved / "cut in two.ckpt", tmp_path / name)
        content = bytearray((damaged / name).read_bytes())
        content[len(content) // 3] ^= 1
        (damaged / name).write_bytes(content)
        with pytest.raises(UserError, match=re.escape(f"{damaged / name}: ")):
            read_checkpoint(damaged)
        checking = [rank for rank in range(2) if not is_read(damaged, rank)]
        assert set(checking) >= ({0, 1} if name == STATE_FILE else {int(name.split("-")[1])})
    damaged = shutil.copytree(saved / "cut in two.ckpt", tmp_path / "without")
    (damaged / checksums_file(1, 2)).unlink()
    with pytest.raises(UserError, match=f"{checksums_file(1, 2)}: missing"):
        read_checkpoint(damaged)


def is_read(path, rank):
    try:
        read_checkpoint(path, rank, 2)
    except UserError:
        return False
    return True


def test_nothing_in_a_folder_is_executed(saved, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    path = tmp_path / "step=00000003.ckpt"
    path.mkdir()
    (path / STATE_FILE).write_bytes(pickle.dumps(Evil()))
    torch.save(Evil(), path / STATE_FILE)
    with pytest.raises(UserError, match=r"state\.pt: not a readable checkpoint"):
        read_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_partials_are_not_checkpoints(saved, tmp_path):
    whole = tmp_path / "step=00000003.ckpt"
    for path in (whole, partial_of(tmp_path / "step=00000006.ckpt")):
        path.mkdir()
        (path / STATE_FILE).write_bytes((saved / "cut in two.ckpt" / STATE_FILE).read_bytes())
    partial_of(tmp_path / "step=00000009.ckpt").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == whole
    assert is_checkpoint(whole)
    remove_partials(tmp_path)
    assert list(tmp_path.iterdir()) == [whole]
    remove_checkpoint(whole)
    assert not list(tmp_path.iterdir())


def test_a_kill_during_a_removal_leaves_no_incomplete_checkpoint(saved, tmp_path, monkeypatch):
    path = tmp_path / "step=00000003.ckpt"
    path.mkdir()
    (path / STATE_FILE).touch()

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", killed)
        patch.setattr(os, "rmdir", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_checkpoint(path)
    assert latest_checkpoint(tmp_path) is None
    remove_partials(tmp_path)
    assert not list(tmp_path.iterdir())

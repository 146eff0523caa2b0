"""Optimizers: parameter groups, update rules, saved states."""

import math
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lit_illada.errors import UserError
from lit_illada.training.config.optim import OPTIMIZERS, AdamW8bitConfig, AdamWConfig, MuonConfig, OptimConfig
from lit_illada.training.muon import Muon
from lit_illada.training.optim import build_optimizer, check_optimizer

needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")
NAMES = [pytest.param(name, marks=needs_torchao) if name == "adamw8bit" else name for name in OPTIMIZERS]


class Tiny(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(8, width)
        self.layers = nn.ModuleList([nn.Linear(width, width, bias=False)])
        self.norm = nn.RMSNorm(width)

    def forward(self, ids):
        return self.norm(self.layers[0](self.embed_tokens(ids))).square().sum()


def train(model, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.arange(8).roll(step)).backward()
        optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_norms_are_not_decayed_and_every_parameter_is_updated_once(name):
    model = Tiny()
    optimizer = build_optimizer(model, OPTIMIZERS[name]())
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == sum(len(group["params"]) for group in optimizer.param_groups) == 3
    assert decay[id(model.norm.weight)] == 0
    assert decay[id(model.layers[0].weight)] == decay[id(model.embed_tokens.weight)] == 0.1


def test_the_joint_optimizer_equals_its_parts_used_separately():
    config = MuonConfig(learning_rate=0.01)
    ours, separate = Tiny(), Tiny()
    train(ours, build_optimizer(ours, config), 5)
    muon = Muon([separate.layers[0].weight], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [
            {"params": [separate.embed_tokens.weight], "weight_decay": 0.1},
            {"params": [separate.norm.weight], "weight_decay": 0.0},
        ],
        lr=0.01, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    for step in range(5):
        separate.zero_grad()
        separate(torch.arange(8).roll(step)).backward()
        muon.step()
        adamw.step()
    for p, q in zip(ours.parameters(), separate.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_optimizer_resumes_bit_for_bit(name):
    config = OPTIMIZERS[name]()
    whole = Tiny()
    train(whole, build_optimizer(whole, config), 6)
    first = Tiny()
    optimizer = build_optimizer(first, config)
    train(first, optimizer, 3)
    second = Tiny()
    second.load_state_dict(first.state_dict())
    resumed = build_optimizer(second, config)
    resumed.load_state_dict(optimizer.state_dict())
    for step in range(3, 6):
        resumed.zero_grad()
        second(torch.arange(8).roll(step)).backward()
        resumed.step()
    for p, q in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", NAMES)
def test_without_gradients_a_step_changes_nothing(name):
    model = Tiny()
    optimizer = build_optimizer(model, OPTIMIZERS[name]())
    train(model, optimizer, 2)
    before = [p.clone() for p in model.parameters()]
    moments = {id(p): {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    for p, state in optimizer.state.items():
        assert all(torch.equal(value, moments[id(p)][key]) for key, value in state.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("learning_rate", (-1, 0, math.nan, math.inf)),
        ("weight_decay", (-0.1, math.nan)),
        ("beta1", (-0.1, 1.0, math.nan)),
        ("beta2", (1.0, math.nan)),
        ("eps", (0, -1e-8, math.nan)),
    ],
)
def test_invalid_rates_are_rejected_with_the_full_key(name, field, values):
    for value in values:
        with pytest.raises(UserError, match=rf"optim\.optimizer\.{field} is {value}: it must be "):
            OPTIMIZERS[name](**{field: value})


def test_invalid_momenta_and_clip_norms_are_rejected():
    for momentum in (-0.1, 1.0, math.nan):
        with pytest.raises(UserError, match=r"optim\.optimizer\.momentum is .*: it must be in \[0, 1\)"):
            MuonConfig(momentum=momentum)
    for norm in (0, -1, math.nan):
        with pytest.raises(UserError, match=r"optim\.gradient_clip_norm is .*: it must be above 0, or null"):
            OptimConfig(gradient_clip_norm=norm)


@needs_torchao
def test_eight_bit_states_train_almost_like_float32_states():
    """The matrix of 64 × 64 has them, the embedding and the norm are too small."""
    untrained, exact, rounded = Tiny(64), Tiny(64), Tiny(64)
    for model, config in ((exact, AdamWConfig(1e-3)), (rounded, AdamW8bitConfig(1e-3))):
        train(model, build_optimizer(model, config), 20)
    first, far, near = (model(torch.arange(8)).item() for model in (untrained, exact, rounded))
    assert far < first
    assert near == pytest.approx(far, abs=0.1 * (first - far))
    assert not torch.equal(exact.layers[0].weight, rounded.layers[0].weight)


@needs_torchao
def test_eight_bit_states_are_saved_as_plain_tensors_and_resume_exactly(tmp_path):
    whole = Tiny(64)
    train(whole, build_optimizer(whole, AdamW8bitConfig(1e-2)), 6)
    first = Tiny(64)
    optimizer = build_optimizer(first, AdamW8bitConfig(1e-2))
    train(first, optimizer, 3)
    torch.save([first.state_dict(), optimizer.state_dict()], tmp_path / "saved")
    program = "import sys, torch; print(torch.load(sys.argv[1], weights_only=True)[1]['state'][1]['exp_avg'].keys())"
    read = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "saved"], capture_output=True, text=True, check=True
    )
    assert read.stdout == "dict_keys(['codes', 'scale', 'is_signed'])\n"
    second = Tiny(64)
    resumed = build_optimizer(second, AdamW8bitConfig(1e-2))
    weights, states = torch.load(tmp_path / "saved", weights_only=True)
    second.load_state_dict(weights)
    resumed.load_state_dict(states)
    for step in range(3, 6):
        resumed.zero_grad()
        second(torch.arange(8).roll(step)).backward()
        resumed.step()
    for p, q in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


@needs_torchao
def test_eight_bit_states_follow_a_changed_learning_rate():
    model = Tiny(64)
    optimizer = build_optimizer(model, AdamW8bitConfig(1e-2))
    train(model, optimizer, 1)
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, 1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@needs_torchao
def test_eight_bit_states_are_rejected_for_a_sharded_model(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = fully_shard(Tiny(), mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(UserError, match="adamw8bit needs the whole model on every device"):
            build_optimizer(model, AdamW8bitConfig())
    finally:
        torch.distributed.destroy_process_group()


def test_a_missing_package_is_reported_with_its_install_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"adamw8bit needs the torchao package: pip install 'lit-illada\[torchao\]'"):
        check_optimizer(AdamW8bitConfig())
    check_optimizer(AdamWConfig())

"""Which parameter gets which update."""

import math

import pytest
import torch
from torch import nn

from lit_illada.errors import UserError
from lit_illada.training.optim import OPTIMIZERS, MuonConfig, OptimConfig, build_optimizer


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(8, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4, bias=False)])
        self.norm = nn.RMSNorm(4)

    def forward(self, ids):
        return self.norm(self.layers[0](self.embed_tokens(ids))).square().sum()


def train(model, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.arange(8).roll(step)).backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_norms_are_not_decayed_and_every_parameter_is_updated_once(name):
    model = Tiny()
    optimizer = build_optimizer(model, OPTIMIZERS[name]())
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == sum(len(group["params"]) for group in optimizer.param_groups) == 3
    assert decay[id(model.norm.weight)] == 0
    assert decay[id(model.layers[0].weight)] == decay[id(model.embed_tokens.weight)] == 0.1


def test_the_joint_optimizer_equals_its_parts_used_alone():
    config = MuonConfig(learning_rate=0.01)
    ours, alone = Tiny(), Tiny()
    train(ours, build_optimizer(ours, config), 5)
    muon = torch.optim.Muon(
        [alone.layers[0].weight], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [
            {"params": [alone.embed_tokens.weight], "weight_decay": 0.1},
            {"params": [alone.norm.weight], "weight_decay": 0.0},
        ],
        lr=0.01, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    for step in range(5):
        alone.zero_grad()
        alone(torch.arange(8).roll(step)).backward()
        muon.step()
        adamw.step()
    for p, q in zip(ours.parameters(), alone.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_saved_optimizer_goes_on_exactly(name):
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


@pytest.mark.parametrize("name", OPTIMIZERS)
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
def test_impossible_rates_are_refused_by_the_keys_full_path(name, field, values):
    for value in values:
        with pytest.raises(UserError, match=rf"optim\.optimizer\.{field} must .*; got {value}"):
            OPTIMIZERS[name](**{field: value})


def test_impossible_momenta_and_clip_norms_are_refused():
    for momentum in (-0.1, 1.0, math.nan):
        with pytest.raises(UserError, match=r"optim\.optimizer\.momentum must lie in \[0, 1\)"):
            MuonConfig(momentum=momentum)
    for norm in (0, -1, math.nan):
        with pytest.raises(UserError, match=r"optim\.gradient_clip_norm must be above 0, or null"):
            OptimConfig(gradient_clip_norm=norm)

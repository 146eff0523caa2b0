"""Which optimizer updates which parameter, with how much decay."""

import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_illada.errors import UserError
from lit_illada.training.config.optim import AdamW8bitConfig, AdamWConfig, MuonConfig, OptimizerConfig
from lit_illada.training.optim_8bit import EightBitAdamW


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer over the model's parameters, grouped by whether they decay and by what updates them."""
    check_optimizer(config)
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    match config:
        case AdamWConfig():
            return _adamw(parameters, config)
        case MuonConfig():
            matrices = [(name, p) for name, p in parameters if is_muon_parameter(name, p.ndim)]
            taken = {name for name, _ in matrices}
            rest = [(name, p) for name, p in parameters if name not in taken]
            is_cut = any(isinstance(p, DTensor) for _, p in matrices)
            muon = (ShardedMuon if is_cut else torch.optim.Muon)(
                [p for _, p in matrices],
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
            return JointOptimizer([muon, _adamw(rest, config)])
        case AdamW8bitConfig():
            if any(isinstance(p, DTensor) for _, p in parameters):
                raise UserError(
                    "optim/optimizer=adamw8bit needs the whole model on every device, and here it is cut in pieces: "
                    "take optim/optimizer=adamw, whose states are cut with it"
                )
            groups = _decay_groups(parameters, config.weight_decay)
            return EightBitAdamW(groups, config.learning_rate, (config.beta1, config.beta2), config.eps)


def is_muon_parameter(name: str, ndim: int) -> bool:
    """Whether MuonConfig has Muon update this parameter, not AdamW."""
    return ndim == 2 and ".layers." in f".{name}"


def check_optimizer(config: OptimizerConfig) -> None:
    """Raises UserError where its package is missing."""
    if isinstance(config, AdamW8bitConfig) and importlib.util.find_spec("torchao") is None:
        raise UserError(
            "optim/optimizer=adamw8bit needs the torchao package: pip install 'lit-illada[torchao]', or take "
            "optim/optimizer=adamw"
        )


class ShardedMuon(torch.optim.Muon):
    """torch's Muon on matrices that are cut over devices: its update is one of whole matrices.

    Weights and momentum stay cut. One matrix after the other is gathered, and every rank computes its update: that
    work is not shared out.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        assert closure is None, "the joint optimizer has called it"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: DTensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert isinstance(gradient, DTensor)
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"])
        assert isinstance(update, DTensor)
        whole = update.full_tensor()
        change = nn.Parameter(torch.zeros_like(whole))
        change.grad = whole
        # without a momentum of its own: from zero weights, torch's step leaves the change alone
        rule = {key: group[key] for key in ("lr", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")}
        torch.optim.Muon([change], momentum=0.0, nesterov=False, weight_decay=0.0, **rule).step()
        placed = distribute_tensor(change.detach(), parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(placed)


class JointOptimizer(torch.optim.Optimizer):
    """Several optimizers over disjoint parameters, seen from outside as one.

    Groups and state lie here, in torch's own form, so that schedulers and checkpoints treat it as any optimizer; the
    parts only lend their update rule.
    """

    def __init__(self, parts: Iterable[torch.optim.Optimizer]) -> None:
        self._parts = list(parts)
        self._groups_per_part = [len(part.param_groups) for part in self._parts]
        super().__init__([group for part in self._parts for group in part.param_groups], defaults={})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = 0
        for part, count in zip(self._parts, self._groups_per_part, strict=True):
            part.param_groups = self.param_groups[first : first + count]
            part.state = self.state
            part.step()
            first += count
        return loss


def _adamw(parameters: list[tuple[str, nn.Parameter]], config: AdamWConfig | MuonConfig) -> torch.optim.AdamW:
    meshes = {p.device_mesh if isinstance(p, DTensor) else None for _, p in parameters}
    # tensor parallelism leaves parameters on two meshes, which no operator takes together: one after the other then
    is_together = len(meshes) == 1
    return torch.optim.AdamW(
        _decay_groups(parameters, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=is_together,
        foreach=None if is_together else False,
    )


def _decay_groups(parameters: list[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    decayed = [p for _, p in parameters if p.ndim >= 2]
    norms = [p for _, p in parameters if p.ndim < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": norms, "weight_decay": 0.0}]

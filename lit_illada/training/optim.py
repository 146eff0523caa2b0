"""Builds optimizers: AdamW, Muon with AdamW for the non-matrix parameters, and 8-bit AdamW."""

import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lit_illada.errors import UserError
from lit_illada.training.config.optim import (
    AdamW8bitConfig,
    AdamWConfig,
    MuonConfig,
    OptimizerConfig,
    is_muon_parameter,
)
from lit_illada.training.muon import Muon
from lit_illada.training.optim_8bit import EightBitAdamW


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer over the model's trainable parameters, grouped by weight decay and update rule.

    Raises UserError if its package is missing, or if it does not support a sharded model.
    """
    check_optimizer(config)
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    match config:
        case AdamWConfig():
            return _adamw(parameters, config)
        case MuonConfig():
            matrices = [(name, p) for name, p in parameters if is_muon_parameter(name, p.ndim)]
            muon_names = {name for name, _ in matrices}
            rest = [(name, p) for name, p in parameters if name not in muon_names]
            muon = Muon(
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
                    "optim/optimizer=adamw8bit needs the whole model on every device, but the model is sharded: use "
                    "optim/optimizer=adamw, whose states are sharded with the model"
                )
            groups = _decay_groups(parameters, config.weight_decay)
            return EightBitAdamW(groups, config.learning_rate, (config.beta1, config.beta2), config.eps)


def check_optimizer(config: OptimizerConfig) -> None:
    """Raise UserError if the optimizer's package is not installed."""
    if isinstance(config, AdamW8bitConfig) and importlib.util.find_spec("torchao") is None:
        raise UserError(
            "optim/optimizer=adamw8bit needs the torchao package: pip install 'lit-illada[torchao]', or use "
            "optim/optimizer=adamw"
        )


class JointOptimizer(torch.optim.Optimizer):
    """Several optimizers over disjoint parameters, combined into one.

    Holds all groups and states in torch's format, so that schedulers and checkpoints treat it like any optimizer; the
    parts contribute only their update rules.
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
    # under tensor parallelism parameters lie on two meshes, and fused or foreach operators accept only one
    has_one_mesh = len(meshes) == 1
    return torch.optim.AdamW(
        _decay_groups(parameters, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=has_one_mesh,
        foreach=None if has_one_mesh else False,
    )


def _decay_groups(parameters: list[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    decayed = [p for _, p in parameters if p.ndim >= 2]
    norms = [p for _, p in parameters if p.ndim < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": norms, "weight_decay": 0.0}]

"""Config of the optimizers; `training/optim.py` builds them."""

import math
from dataclasses import dataclass

from lit_illada.errors import require
from lit_illada.schema import choice
from lit_illada.training.config.schedule import SCHEDULES, Schedule


@dataclass(frozen=True)
class _Adam:
    """Hyper-parameters shared by AdamW's implementations."""

    learning_rate: float = 2e-4
    """Peak learning rate, before the schedule's factor."""
    weight_decay: float = 0.1
    """Decoupled weight decay of parameters with two or more dimensions."""
    beta1: float = 0.9
    """Decay rate of the first moment."""
    beta2: float = 0.95
    """Decay rate of the second moment."""
    eps: float = 1e-8
    """Term added to the denominator for numerical stability."""

    def __post_init__(self) -> None:
        _check_rates(self)


@dataclass(frozen=True)
class AdamWConfig(_Adam):
    """AdamW (arXiv 1711.05101) on all parameters, without decay on norms and biases. The papers' optimizer."""


@dataclass(frozen=True)
class MuonConfig:
    """torch's Muon on the matrices inside the layers, AdamW on embedding, head and norms.

    Muon's update is scaled to AdamW's typical size (`match_rms_adamw`, arXiv 2502.16982), so that both use one learning
    rate.
    """

    learning_rate: float = 2e-3
    """Peak learning rate, before the schedule's factor."""
    weight_decay: float = 0.1
    """Decoupled weight decay of parameters with two or more dimensions."""
    momentum: float = 0.95
    """Muon's Nesterov momentum."""
    beta1: float = 0.9
    """AdamW's decay rate of the first moment."""
    beta2: float = 0.95
    """AdamW's decay rate of the second moment."""
    eps: float = 1e-8
    """AdamW's term added to the denominator for numerical stability."""

    def __post_init__(self) -> None:
        _check_rates(self)
        require(0 <= self.momentum < 1, "optim.optimizer.momentum", self.momentum, "in [0, 1)")


@dataclass(frozen=True)
class AdamW8bitConfig(_Adam):
    """AdamW with 8-bit moments, in blocks of 256 with one scale each (arXiv 2110.02861, implemented by torchao).

    The optimizer state takes a quarter of AdamW's memory. Tensors with fewer than 4096 elements have float32 moments.
    Needs the whole model on each device: the states cannot be sharded.
    """


OptimizerConfig = AdamWConfig | MuonConfig | AdamW8bitConfig


OPTIMIZERS: dict[str, type] = {"adamw": AdamWConfig, "muon": MuonConfig, "adamw8bit": AdamW8bitConfig}


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer, learning-rate schedule and gradient clipping."""

    optimizer: OptimizerConfig = choice(OPTIMIZERS, "adamw")
    """Update rule and its hyper-parameters."""
    schedule: Schedule = choice(SCHEDULES, "cosine")
    """Factor of the learning rate over the run."""
    gradient_clip_norm: float | None = 1.0
    """Largest global 2-norm of a step's gradient; None: no clipping."""

    def __post_init__(self) -> None:
        norm = self.gradient_clip_norm
        require(norm is None or norm > 0, "optim.gradient_clip_norm", norm, "above 0, or null for no clipping")


def is_muon_parameter(name: str, ndim: int) -> bool:
    """Whether MuonConfig updates this parameter with Muon (matrices inside the layers) rather than AdamW."""
    return ndim == 2 and ".layers." in f".{name}"


def _check_rates(config: _Adam | MuonConfig) -> None:
    require(0 < config.learning_rate < math.inf, "optim.optimizer.learning_rate", config.learning_rate, "above 0")
    require(0 <= config.weight_decay < math.inf, "optim.optimizer.weight_decay", config.weight_decay, "0 or more")
    require(0 <= config.beta1 < 1, "optim.optimizer.beta1", config.beta1, "in [0, 1)")
    require(0 <= config.beta2 < 1, "optim.optimizer.beta2", config.beta2, "in [0, 1)")
    require(0 < config.eps < math.inf, "optim.optimizer.eps", config.eps, "above 0")

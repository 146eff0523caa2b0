"""LoRA: low-rank adapters on linear layers (arXiv 2106.09685).

    W·x + (alpha / rank) · B·(A·x), with W frozen and B initially zero

An adapted layer is the linear layer with two more parameters. Its weight has the same name as in the base model,
`….q_proj.weight`; the adapters are `….q_proj.lora_a` (rank, inputs) and `….q_proj.lora_b` (outputs, rank). They are
ordinary parameters of the block, so sharding, compilation and activation checkpointing need no special case.
"""

import math
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_illada.errors import UserError
from lit_illada.model.config import ModelConfig
from lit_illada.model.initial import InitialWeights, fill
from lit_illada.model.lora_config import LoraConfig
from lit_illada.model.transformer import Transformer

L = TypeVar("L", bound=nn.Linear)
_ADAPTERS = (".lora_a", ".lora_b")


class LoraLinear(nn.Linear):
    """A linear layer with a low-rank update. Adapters are float32 regardless of the base weight."""

    lora_a: nn.Parameter  # (rank, inputs)
    lora_b: nn.Parameter  # (outputs, rank)
    scale: float

    @classmethod
    def around(cls, base: nn.Linear, rank: int, scale: float) -> "LoraLinear":
        """Shares the weight of `base`, frozen; the adapters are uninitialised memory."""
        with torch.device("meta"):
            layer = cls(base.in_features, base.out_features, bias=base.bias is not None)
        layer.weight, layer.bias, layer.scale = base.weight, base.bias, scale
        device = base.weight.device
        layer.lora_a = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        layer.lora_b = nn.Parameter(torch.empty(base.out_features, rank, device=device))
        return layer

    def forward(self, x: Tensor) -> Tensor:
        down = F.linear(x, self.lora_a.to(x.dtype))
        return F.linear(x, self.weight, self.bias) + F.linear(down, self.lora_b.to(x.dtype)) * self.scale

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The equivalent plain layer; the sum is computed in float32 and rounded once."""
        with torch.device("meta"):
            layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        layer.weight = nn.Parameter(_merged_weight(self.weight, self.lora_a, self.lora_b, self.scale))
        layer.bias = self.bias
        return layer


def add_lora(model: Transformer, config: LoraConfig, seed: int = 0) -> None:
    """Freezes the model and adds adapters to its target layers in place; outputs are unchanged while B = 0.

    Call it after loading the base weights and before sharding and compiling. On the meta device adapters get no values.
    Raises UserError if the rank exceeds a dimension of a target layer.
    """
    model.requires_grad_(False)
    for name, base in _layers(model, nn.Linear):
        if name.rpartition(".")[2] not in config.targets:
            continue
        if config.rank > min(base.weight.shape):
            raise UserError(f"adapter.rank is {config.rank}: {name} is only {' × '.join(map(str, base.weight.shape))}")
        model.set_submodule(name, LoraLinear.around(base, config.rank, config.scale))
    if not model.lm_head_weight.is_meta:
        fill(model, InitialWeights(model, model.config, seed), only=_ADAPTERS)


def adapter_shapes(model: ModelConfig, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the adapter parameters by name, without allocating them."""
    with torch.device("meta"):
        made = Transformer(model)
        add_lora(made, config)
    return {name: tuple(p.shape) for name, p in made.named_parameters() if p.requires_grad}


def num_adapter_parameters(model: ModelConfig, config: LoraConfig | None) -> int | None:
    """Number of adapter parameters; None without a config."""
    return None if config is None else sum(map(math.prod, adapter_shapes(model, config).values()))


def merge_lora(model: Transformer) -> None:
    """Merges adapters into the weights in place: a plain model with the same outputs and all parameters trainable."""
    for name, layer in _layers(model, LoraLinear):
        model.set_submodule(name, layer.merged())
    model.requires_grad_(True)


class MergedTensors(Mapping[str, Tensor]):
    """State dict of the equivalent plain model: each weight is merged on access.

    A checkpoint with adapters can thus be loaded or exported like any other.
    """

    def __init__(self, tensors: Mapping[str, Tensor], scale: float) -> None:
        self._tensors, self._scale = tensors, scale
        self._names = [name for name in tensors if not name.endswith(_ADAPTERS)]

    def __getitem__(self, name: str) -> Tensor:
        if name.endswith(_ADAPTERS):
            raise KeyError(name)
        adapters = [name.removesuffix(".weight") + ending for ending in _ADAPTERS]
        if not name.endswith(".weight") or adapters[0] not in self._tensors:
            return self._tensors[name]
        lora_a, lora_b = (self._tensors[adapter] for adapter in adapters)
        return _merged_weight(self._tensors[name], lora_a, lora_b, self._scale)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _merged_weight(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
    return (weight.float() + lora_b @ lora_a * scale).to(weight.dtype)


def _layers(model: Transformer, kind: type[L]) -> list[tuple[str, L]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kind)]

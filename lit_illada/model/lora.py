"""How are a few numbers trained instead of all? Low-rank adapters on the linear layers (LoRA, arXiv 2106.09685).

    W·x + (alpha / rank) · B·(A·x), W frozen, B zero at first

An adapted layer is the linear layer with two parameters more, so the names of its weights stay those of the base model,
`….q_proj.weight`, and the adapter's stand beside them: `….q_proj.lora_a` (rank, inputs), `….q_proj.lora_b` (outputs,
rank). They are parameters of the block like any other: what shards, compiles or recomputes blocks needs no change.
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
    """A linear layer with a low-rank update. The adapters are float32 whatever the base weight is."""

    lora_a: nn.Parameter  # (rank, inputs)
    lora_b: nn.Parameter  # (outputs, rank)
    scale: float

    @classmethod
    def around(cls, base: nn.Linear, rank: int, scale: float) -> "LoraLinear":
        """Takes over the base's own weight, frozen; the adapters are uninitialised memory."""
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
        """The plain layer of the same function; the sum is taken in float32 and rounded once."""
        with torch.device("meta"):
            layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        layer.weight = nn.Parameter(_merged_weight(self.weight, self.lora_a, self.lora_b, self.scale))
        layer.bias = self.bias
        return layer


def add_lora(model: Transformer, config: LoraConfig, seed: int = 0) -> None:
    """Freezes the model and adapts its target layers in place; its outputs stay the same until B is trained.

    A ~ N(0, 1 / inputs), B = 0. Before sharding and compiling, after loading the base's weights; on the meta device it
    leaves the adapters without values, as the base.
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
    """Of what such a model then trains, by name. Allocates none."""
    with torch.device("meta"):
        made = Transformer(model)
        add_lora(made, config)
    return {name: tuple(p.shape) for name, p in made.named_parameters() if p.requires_grad}


def num_adapter_parameters(model: ModelConfig, config: LoraConfig | None) -> int | None:
    """None: without adapters."""
    return None if config is None else sum(map(math.prod, adapter_shapes(model, config).values()))


def merge_lora(model: Transformer) -> None:
    """Puts the updates into the weights, in place: a plain model with the same outputs, all of it trainable again."""
    for name, layer in _layers(model, LoraLinear):
        model.set_submodule(name, layer.merged())
    model.requires_grad_(True)


class MergedTensors(Mapping[str, Tensor]):
    """An adapted model's state dict as the plain model's: each weight is merged when it is asked for.

    So a checkpoint with adapters loads, or is exported, as any other. Without adapters the tensors are as they were.
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

"""Initial weights, each a function of the seed and the parameter name only.

Tensors can therefore be drawn one at a time and in any order, so that no device needs to hold a sharded model whole.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from lit_illada.model.config import ModelConfig


class InitialWeights(Mapping[str, Tensor]):
    """iLLaDA's released initialisation, by parameter name; tensors are drawn on access, always on the CPU.

    Linear layers N(0, s²), o_proj and down_proj with s/√(2·layers) so that the residual stream does not grow with
    depth; embedding N(0, 1/(2·width)); norms 1; biases 0. Adapters: A ~ N(0, 1 / inputs), B = 0.
    """

    def __init__(self, model: nn.Module, config: ModelConfig, seed: int) -> None:
        """model: only names and shapes of its parameters are used; it may be on the meta device."""
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self._config, self._seed = config, seed

    def __getitem__(self, name: str) -> Tensor:
        drawn = torch.empty(self._shapes[name], dtype=torch.float32)
        if name.endswith("norm.weight"):
            return drawn.fill_(1.0)
        if name.endswith((".bias", ".lora_b")):
            return drawn.zero_()
        return drawn.normal_(0.0, self._std(name), generator=_generator(self._seed, name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def _std(self, name: str) -> float:
        if name.endswith("embed_tokens.weight"):
            return (2 * self._config.hidden_size) ** -0.5
        if name.endswith(".lora_a"):
            return self._shapes[name][1] ** -0.5
        ends_branch = name.endswith(("o_proj.weight", "down_proj.weight"))
        layers = self._config.num_hidden_layers
        return self._config.initializer_range / (math.sqrt(2 * layers) if ends_branch else 1.0)


@torch.no_grad()
def fill(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str = "", only: tuple[str, ...] = ("",)) -> None:
    """Copies tensors into the parameters of a module, converted to their dtype and device.

    prefix: prefix of the module's parameter names in `tensors`. only: suffixes of the parameters to fill.
    """
    for name, parameter in module.named_parameters():
        if name.endswith(only):
            parameter.copy_(tensors[prefix + name])


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4]))  # torch's CPU generator uses 32 bits of a seed

"""What does a model begin with? Random weights, each a function of the seed and the parameter's name alone.

So they can be drawn one at a time and in any order: where a model is spread over devices, none ever holds it whole.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from lit_illada.model.config import ModelConfig


class InitialWeights(Mapping[str, Tensor]):
    """The released initialisation, by name; a tensor is drawn when it is asked for, on the CPU wherever it will lie.

    Linear N(0, s²), with o_proj and down_proj at s/√(2·layers) so that the residual stream does not grow with depth;
    embedding N(0, 1/(2·width)); norms 1; biases 0. Of an adapter A ~ N(0, 1 / inputs) and B = 0.
    """

    def __init__(self, model: nn.Module, config: ModelConfig, seed: int) -> None:
        """model: only the names and shapes of its parameters are taken; it may be on the meta device."""
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
    """Copies the weights in, each converted to the dtype and device of its parameter.

    prefix: what stands before the module's own names in `tensors`. only: endings of the names of those to fill.
    """
    for name, parameter in module.named_parameters():
        if name.endswith(only):
            parameter.copy_(tensors[prefix + name])


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4]))  # torch's CPU generator keeps 32 bits of a seed

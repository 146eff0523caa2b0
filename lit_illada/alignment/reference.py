"""The reference: a frozen copy of the trained parameters, in whose place the model computes the reference's scores.

With LoRA the copy holds the adapters only: their initial values leave the base model unchanged. The copy consists of
buffers, so that checkpoints contain it; under FSDP it is sharded like the parameters.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


class Reference(nn.Module):
    """A copy of the parameters of `model` that require gradients."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, parameter in _trained(model):
            self.register_buffer(_key(name), parameter.detach().clone())

    @torch.no_grad()
    def copy_from(self, model: nn.Module) -> None:
        """Make the model's present parameters the reference."""
        for name, parameter in _trained(model):
            _local(self.get_buffer(_key(name))).copy_(_local(parameter))

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Exchange the model's parameters for the reference's within the block."""
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        for name, parameter in _trained(model):
            own, other = _local(parameter), _local(self.get_buffer(_key(name)))
            saved = own.clone()
            own.copy_(other)
            other.copy_(saved)
        torch.clear_autocast_cache()  # it may hold the weights in bfloat16


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # a forward pass may leave whole parameters behind
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _key(name: str) -> str:
    return name.replace(".", "/")  # names of buffers have no dots


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor

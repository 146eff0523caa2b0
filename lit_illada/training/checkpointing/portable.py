"""How does a run's state go from one way of spreading it over devices to another? By the names of its parameters.

A checkpoint holds every tensor whole, or in parts that make it whole, under a name that no strategy changes; whoever
loads it copies the box that this process holds. Lightning's own numbers optimizer states in the order of the groups,
which differs between strategies and so gives parameters each other's moments.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lit_illada.errors import UserError
from lit_illada.model.weight_check import check_weights
from lit_illada.training.checkpointing.sharded import StoredTensor, local_box


class PortableState(Strategy):
    """A mixin: weights and optimizer states by name, tensors as this process holds them, into any strategy and back."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return model_state(self._module)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        load_model_state(self._module, checkpoint["state_dict"])

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return optimizer_state(plain, self._module)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            load_optimizer_state(optimizer, self._module, saved)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        self.checkpoint_io.save_checkpoint(checkpoint, filepath)  # the writer knows which process writes what

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=True)

    @property
    def _module(self) -> nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module


class OneDevice(PortableState, SingleDeviceStrategy):
    """One process."""


class DataParallel(PortableState, DDPStrategy):
    """Every process holds all."""


def model_state(module: nn.Module) -> dict[str, Any]:
    """Weights and buffers by name."""
    return dict(module.state_dict())


@torch.no_grad()
def load_model_state(module: nn.Module, saved: Mapping[str, Any]) -> None:
    """Copy what this process holds of each. Raises UserError for other names or shapes, NaN and huge weights."""
    own = model_state(module)
    if different := sorted(own.keys() ^ saved.keys()):
        raise UserError(f"the checkpoint is of another model: only one of the two has {different[0]}")
    for name, target in own.items():
        _copy(saved[name], target, name)
        if name.startswith("model."):
            check_weights(name, target.to_local() if isinstance(target, DTensor) else target, "the checkpoint")


def optimizer_state(optimizer: Optimizer, module: nn.Module) -> dict[str, Any]:
    """As torch's state dict, but with names where that has numbers."""
    saved, names = optimizer.state_dict(), _names_in_order(optimizer, module)
    return {
        "state": {names[number]: state for number, state in saved["state"].items()},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]} for group in saved["param_groups"]
        ],
    }


@torch.no_grad()
def load_optimizer_state(optimizer: Optimizer, module: nn.Module, saved: Mapping[str, Any]) -> None:
    """The states alone: rates, decays and the like stay those of the optimizer.

    Raises UserError for states of parameters that are not trained here.
    """
    names = _names_in_order(optimizer, module)
    states = _by_name(saved, names)
    if strange := states.keys() - set(names):
        raise UserError(f"the checkpoint's optimizer trains {min(strange)}, this run's does not")
    placed = {}
    parameters = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
    for number, (name, (parameter, group)) in enumerate(zip(names, parameters, strict=True)):
        if name in states:  # no step may have updated it yet
            state = states[name].items()
            placed[number] = {key: _placed(value, parameter, group, f"{name}, {key}") for key, value in state}
    if type(optimizer).load_state_dict is not Optimizer.load_state_dict:  # it saves states in a form of its own
        optimizer.load_state_dict({"state": placed, "param_groups": optimizer.state_dict()["param_groups"]})
        return
    # torch's own would turn every state into its parameter's dtype
    for number, state in placed.items():
        optimizer.state[parameters[number][0]] = state


def _by_name(saved: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The states; those of an older checkpoint are numbered in the order of the groups."""
    numbers = [key for group in saved["param_groups"] for key in group["params"]]
    if not all(isinstance(key, int) for key in numbers):
        return dict(saved["state"])
    if len(numbers) != len(names):
        raise UserError(f"the checkpoint's optimizer trains {len(numbers)} parameters, this run's {len(names)}")
    return {name: saved["state"][key] for key, name in zip(numbers, names, strict=True) if key in saved["state"]}


def _placed(value: Any, parameter: Tensor, group: Mapping[str, Any], name: str) -> Any:
    """A copy of a state where its parameter lies, divided as the parameter is."""
    if not isinstance(value, Tensor | StoredTensor):
        return value
    if value.shape == parameter.shape and (isinstance(value, StoredTensor) or type(value) is Tensor):
        target = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
        _copy(value, target, name)
        return target
    whole = value[...] if isinstance(value, StoredTensor) else value
    is_step_on_host = not whole.ndim and not group.get("fused") and not group.get("capturable")
    return whole.to("cpu" if is_step_on_host else parameter.device, copy=True)


def _copy(value: Tensor | StoredTensor, target: Tensor, name: str) -> None:
    if tuple(value.shape) != tuple(target.shape):
        raise UserError(f"the checkpoint holds {name} as {tuple(value.shape)}, this run as {tuple(target.shape)}")
    if isinstance(target, DTensor):
        local = target.to_local()
        if local.numel():
            local.copy_(value[local_box(target)])
    else:
        target.copy_(value[...])


def _names_in_order(optimizer: Optimizer, module: nn.Module) -> list[str]:
    """Of the optimizer's parameters, in the order of its groups, by which torch numbers them."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]

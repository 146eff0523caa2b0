"""Strategies whose checkpoints any other strategy can load: weights and optimizer states by parameter name.

A checkpoint holds every tensor, whole or in parts, under a name that no strategy changes; loading copies the part that
this process holds. Lightning's checkpoints number optimizer states in the order of the parameter groups, which differs
between strategies and would assign moments to the wrong parameters.
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
from lit_illada.training.checkpointing.own_parts import local_box
from lit_illada.training.checkpointing.sharded import StoredTensor


class PortableState(Strategy):
    """Mixin for Lightning strategies that saves and loads weights and optimizer states by parameter name."""

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
        self.checkpoint_io.save_checkpoint(checkpoint, filepath)  # CheckpointWriter decides which process writes what

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=True)

    @property
    def _module(self) -> nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module


class OneDevice(PortableState, SingleDeviceStrategy):
    """One process on one device."""


class DataParallel(PortableState, DDPStrategy):
    """DDP: every process holds the whole model."""


def model_state(module: nn.Module) -> dict[str, Any]:
    """Weights and buffers by name."""
    return dict(module.state_dict())


@torch.no_grad()
def load_model_state(module: nn.Module, saved: Mapping[str, Any]) -> None:
    """Copy the saved weights and buffers, or this process's shards of them, into the module.

    Raises UserError if names or shapes differ, and for weights that are NaN or implausibly large.
    """
    own = model_state(module)
    if different := sorted(own.keys() ^ saved.keys()):
        raise UserError(f"the checkpoint belongs to another model: only one of the two has {different[0]}")
    for name, target in own.items():
        _copy(saved[name], target, name)
        if name.startswith("model."):
            check_weights(name, target.to_local() if isinstance(target, DTensor) else target, "the checkpoint")


def optimizer_state(optimizer: Optimizer, module: nn.Module) -> dict[str, Any]:
    """torch's state dict with parameter names instead of indices."""
    saved, names = optimizer.state_dict(), _names_in_order(optimizer, module)
    return {
        "state": {names[number]: state for number, state in saved["state"].items()},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]} for group in saved["param_groups"]
        ],
    }


@torch.no_grad()
def load_optimizer_state(optimizer: Optimizer, module: nn.Module, saved: Mapping[str, Any]) -> None:
    """Load the states only; learning rates, weight decay and other options remain the optimizer's.

    Raises UserError for states of parameters that this run does not train.
    """
    names = _names_in_order(optimizer, module)
    states = _by_name(saved, names)
    if unknown := states.keys() - set(names):
        raise UserError(f"the checkpoint's optimizer trains {min(unknown)}, this run's does not")
    loaded = {}
    parameters = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
    for number, (name, (parameter, group)) in enumerate(zip(names, parameters, strict=True)):
        if name in states:  # parameters without an update so far have no state
            state = states[name].items()
            loaded[number] = {key: _to_parameter(value, parameter, group, f"{name}, {key}") for key, value in state}
    if type(optimizer).load_state_dict is not Optimizer.load_state_dict:  # an optimizer with its own state format
        optimizer.load_state_dict({"state": loaded, "param_groups": optimizer.state_dict()["param_groups"]})
        return
    # torch's load_state_dict would cast every state to its parameter's dtype
    for number, state in loaded.items():
        optimizer.state[parameters[number][0]] = state


def _by_name(saved: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The states by parameter name; those of older checkpoints are numbered in the order of the groups."""
    numbers = [key for group in saved["param_groups"] for key in group["params"]]
    if not all(isinstance(key, int) for key in numbers):
        return dict(saved["state"])
    if len(numbers) != len(names):
        raise UserError(f"the checkpoint's optimizer trains {len(numbers)} parameters, this run's {len(names)}")
    return {name: saved["state"][key] for key, name in zip(numbers, names, strict=True) if key in saved["state"]}


def _to_parameter(value: Any, parameter: Tensor, group: Mapping[str, Any], name: str) -> Any:
    """A copy of a state on its parameter's device, sharded like the parameter."""
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
    """Names of the optimizer's parameters in the order of its groups, which is torch's numbering."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]

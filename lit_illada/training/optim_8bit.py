"""torchao's AdamW with 8-bit moments (arXiv 2110.02861) behind torch's optimizer interface."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch


class EightBitAdamW(torch.optim.Optimizer):
    """torchao's AdamW8bit with float learning rates, as schedulers set them, and a state dict of plain tensors, which
    can be read without torchao.
    """

    def __init__(
        self, groups: list[dict[str, Any]], learning_rate: float, betas: tuple[float, float], eps: float
    ) -> None:
        from torchao.optim import AdamW8bit

        super().__init__(groups, {"lr": learning_rate, "betas": betas, "eps": eps})
        self._rule = AdamW8bit([{**group} for group in self.param_groups])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for rule_group, group in zip(self._rule.param_groups, self.param_groups, strict=True):
            rate = rule_group["lr"].fill_(group["lr"])  # a float would become a constant of the kernel
            rule_group.update({**group, "lr": rate})
        self._rule.state = self.state
        # torchao compiles the update for every shape: that saves a memory pass on a GPU, but costs minutes on a CPU
        is_on_cpu = all(p.device.type == "cpu" for group in self.param_groups for p in group["params"])
        with torch.compiler.set_stance("force_eager") if is_on_cpu else nullcontext():
            self._rule.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        saved = super().state_dict()
        states = {index: {name: _unpack(v) for name, v in state.items()} for index, state in saved["state"].items()}
        return {**saved, "state": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states = {
            index: {name: _pack(value) for name, value in state.items()} for index, state in state_dict["state"].items()
        }
        super().load_state_dict({**state_dict, "state": states})


def _unpack(value: Any) -> Any:
    """Turn an 8-bit moment into plain tensors: codes, block scales, signedness. Other values are returned as is."""
    if not hasattr(value, "codes"):
        return value
    return {"codes": value.codes, "scale": value.scale, "is_signed": value.signed}


def _pack(value: Any) -> Any:
    """Inverse of `_unpack`."""
    if not isinstance(value, dict):
        return value
    from torchao.optim.subclass_8bit import OptimState8bit

    codes, scale = value["codes"], value["scale"]
    block = codes.numel() // scale.numel()
    table = OptimState8bit.zeros((block,), value["is_signed"], block, codes.device).qmap
    return OptimState8bit(codes.clone(), scale.clone(), table, value["is_signed"], torch.float32)

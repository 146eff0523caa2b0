"""torchao's AdamW with moments of 8 bits (arXiv 2110.02861), as the optimizer our runs resume and schedule."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch


class EightBitAdamW(torch.optim.Optimizer):
    """torchao's AdamW8bit, seen from outside as any optimizer: its rates are floats, and what it saves are plain
    tensors, which are read without torchao too.
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
        for lent, group in zip(self._rule.param_groups, self.param_groups, strict=True):
            rate = lent["lr"].fill_(group["lr"])  # a tensor: a number would be compiled into the kernel
            lent.update({**group, "lr": rate})
        self._rule.state = self.state
        # torchao compiles the update of every shape: on a GPU it saves a pass over memory, on a CPU minutes are lost
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
    """Of a moment in 8 bits its bytes, the blocks' scales and whether it has a sign; anything else as it is."""
    if not hasattr(value, "codes"):
        return value
    return {"codes": value.codes, "scale": value.scale, "is_signed": value.signed}


def _pack(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    from torchao.optim.subclass_8bit import OptimState8bit

    codes, scale = value["codes"], value["scale"]
    block = codes.numel() // scale.numel()
    table = OptimState8bit.zeros((block,), value["is_signed"], block, codes.device).qmap
    return OptimState8bit(codes.clone(), scale.clone(), table, value["is_signed"], torch.float32)

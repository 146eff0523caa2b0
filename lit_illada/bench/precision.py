"""Precision of benchmarks: by default that of a training run on the same device."""

import torch

from lit_illada.errors import UserError
from lit_illada.training.config.trainer import Accelerator, Precision


def default_precision(device: torch.device) -> Precision:
    """What `trainer.precision=auto` chooses on a device."""
    return Precision.auto.resolve(Accelerator.gpu if device.type == "cuda" else Accelerator.cpu)


def require_bfloat16(device: torch.device) -> None:
    """Raise UserError for a processor without bfloat16 instructions: 85 times slower than float32 on AMD's Zen 3."""
    if device.type == "cpu" and not any(has for name, has in torch.cpu.get_capabilities().items() if "bf16" in name):
        raise UserError("this processor has no bfloat16 instructions, so bfloat16 would take tens of times as long")

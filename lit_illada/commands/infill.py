"""Runs `generate --infill`: fills the gaps of a text, with a live view."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from lit_illada.checkpoints.open import load_checkpoint
from lit_illada.commands.generate import LiveView
from lit_illada.config import load
from lit_illada.generation.text import infill_text
from lit_illada.runtime.console import Console
from lit_illada.runtime.terminal import print_content
from lit_illada.training.config.trainer import Precision


def run_infill(checkpoint: Path, text: str, live: bool | None, overrides: Sequence[str]) -> None:
    """Print the whole text on standard output; the live view goes to standard error.

    text: with marks such as `<fill:12>`.
    """
    config = load("generate", overrides)
    accelerator = config.accelerator.resolve()
    precision = config.precision.resolve(accelerator)
    is_bf16 = precision is Precision.bf16_mixed
    model, tokenizer = load_checkpoint(checkpoint, accelerator.device, precision.dtype_of_loaded)
    console = Console(stderr=True)
    view = LiveView(tokenizer, console) if (console.is_terminal if live is None else live) else None
    with view or nullcontext(), torch.autocast(accelerator.device.type, torch.bfloat16, enabled=is_bf16):
        pieces = infill_text(model, tokenizer, text, config.generation, on_commit=view)
    print_content("".join(pieces))

"""What does scoring ask of a model? Two callables and a few facts, so that no room below has to know its class."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_illada.batch import Layout
from lit_illada.scoring.likelihood import ScoreFn

LayoutLogitsFn = Callable[[Tensor, Layout, Tensor], Tensor]
"""(noisy_ids (B, T), layout, select (B, T) bool) -> logits (M, V) of the selected tokens. The model itself is one."""

OnForward = Callable[[int], None]
"""Told after every forward pass how many tokens it had, padding included."""


@dataclass(frozen=True, eq=False)
class ScoringModel:
    """score, logits: the model with and without targets. max_length: tokens it has positions for.

    is_causal: it takes tokens shifted right by one, EOS first, and scores them exactly.
    """

    score: ScoreFn
    logits: LayoutLogitsFn
    mask_token_id: int
    eos_token_id: int
    max_length: int
    is_causal: bool
    device: torch.device

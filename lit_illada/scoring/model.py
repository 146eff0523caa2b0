"""Interface of the models that are scored: two callables and a few properties."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_illada.batch import Layout
from lit_illada.objective.loss import ScoreFn

LayoutLogitsFn = Callable[[Tensor, Layout, Tensor], Tensor]
"""(noisy_ids (B, T), layout, select (B, T) bool) -> logits (M, V) of the selected tokens. The model itself is one."""

OnForward = Callable[[int], None]
"""Called after every forward pass with its number of tokens, padding included."""


@dataclass(frozen=True, eq=False)
class ScoringModel:
    """A model to score with."""

    score: ScoreFn
    logits: LayoutLogitsFn
    mask_token_id: int
    eos_token_id: int
    max_length: int
    """Positions of the model."""
    is_causal: bool
    """Whether the input is shifted right by one, EOS first, so that likelihoods are exact."""
    device: torch.device
    block_length: int | None = None
    """Tokens per block of a model trained by block diffusion; None: it sees whole rows."""

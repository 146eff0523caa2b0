"""Attention-mask annealing (DiffuLLaMA, arXiv 2410.17891): from causal to bidirectional attention during training.

Each pair of a token and a later one of its row becomes visible at a random time, and stays so. The times are
counter-based noise, so the mask depends on the seed, the row and the progress of training alone, also after a resume.

Shapes: B rows, T tokens.
"""

import torch
from torch import Tensor

from lit_illada.batch import TokenBatch
from lit_illada.objective.noise import Purpose, uniform


def draw_visible_later(batch: TokenBatch, seed: int, visible_fraction: float) -> Tensor:
    """(B, T, T) bool: whether a query (dim 1) attends to a later key (dim 2).

    visible_fraction: probability of each pair; 0: causal attention, 1: bidirectional.
    """
    num_tokens = batch.input_ids.shape[1]
    pairs = torch.arange(num_tokens**2, device=batch.input_ids.device)
    noise = uniform(seed, Purpose.ATTENTION, batch.row_ids, pairs).view(-1, num_tokens, num_tokens)
    return noise < visible_fraction

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
    # row by row, since the noise takes many times the memory of the mask
    rows = [uniform(seed, Purpose.ATTENTION, row_id, pairs) < visible_fraction for row_id in batch.row_ids.split(1)]
    return torch.cat(rows).view(-1, num_tokens, num_tokens)

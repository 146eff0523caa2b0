"""A tiny model and packed rows."""

import pytest
import torch

from lit_illada.batch import Layout


@pytest.fixture
def packed(tiny):
    """Three rows of 12 tokens: documents of 5, 7 | 12 | 1, 8, 3, and their layout."""
    lengths = [5, 7, 12, 1, 8, 3]
    ids = torch.randint(tiny.known_vocab_size, (3, 12), generator=torch.Generator().manual_seed(1))
    return ids, Layout.from_lengths(torch.tensor(lengths), 12), ids.flatten().split(lengths)

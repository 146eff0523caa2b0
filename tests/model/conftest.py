"""A tiny model and packed rows for every test of the room."""

from dataclasses import replace

import pytest
import torch

from lit_illada.batch import Layout
from lit_illada.model.config import ModelConfig
from lit_illada.model.transformer import Transformer

TINY = ModelConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.3,  # far from 0, so that a wrong attention shows in the logits
)


@pytest.fixture
def tiny():
    return TINY


@pytest.fixture
def make_model():
    def make(seed=0, **changes):
        model = Transformer(replace(TINY, **changes))
        model.init_weights(seed)
        return model

    return make


@pytest.fixture
def packed():
    """Three rows of 12 tokens: documents of 5, 7 | 12 | 1, 8, 3, and their layout."""
    lengths = [5, 7, 12, 1, 8, 3]
    ids = torch.randint(TINY.known_vocab_size, (3, 12), generator=torch.Generator().manual_seed(1))
    return ids, Layout.from_lengths(torch.tensor(lengths), 12), ids.flatten().split(lengths)

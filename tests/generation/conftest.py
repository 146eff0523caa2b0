"""A tiny random model, and generation with it."""

from dataclasses import replace

import pytest
import torch

from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.generate import generate
from lit_illada.model.config import ModelConfig
from lit_illada.model.transformer import Transformer

MASK, STOP, VOCABULARY = 0, 1, 23
CONFIG = GenerationConfig(max_new_tokens=12, block_length=6, num_steps=4)
TINY = ModelConfig(VOCABULARY, 16, 32, 2, 2, 1, max_position_embeddings=64, initializer_range=0.5)


@pytest.fixture(scope="session")
def tiny_model():
    """A model with random weights far from 0."""

    def tiny_model(**changes):
        model = Transformer(replace(TINY, **changes))
        model.init_weights(0)
        return model.eval()

    return tiny_model


@pytest.fixture(scope="session")
def model(tiny_model):
    return tiny_model()


@pytest.fixture
def write(model):
    """generate() with defaults for these tests."""

    def write(prompts, config=CONFIG, *, logits_fn=None, stop_token_ids=(), limit=64, **options):
        return generate(
            logits_fn or model,
            prompts,
            config,
            mask_token_id=MASK,
            stop_token_ids=stop_token_ids,
            max_position_embeddings=limit,
            **options,
        )

    return write


@pytest.fixture
def prompts():
    """Of 5 tokens each."""
    return random_prompts(5, 5)


@pytest.fixture
def ragged():
    """Of different lengths, one empty."""
    return random_prompts(5, 0, 9, 2, 9)


def random_prompts(*lengths):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, VOCABULARY, (length,), generator=generator) for length in lengths]

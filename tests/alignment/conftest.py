"""A tiny float64 model, completions of it, and rollouts with their traces."""

from dataclasses import replace

import pytest
import torch

from lit_illada.alignment.completions import Completions
from lit_illada.alignment.scores import completions_noise, score
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.generate import generate
from lit_illada.generation.trace import Recorder
from lit_illada.model.config import AttentionKernel, ModelConfig
from lit_illada.model.transformer import Transformer

MASK, STOP, VOCABULARY = 0, 1, 5
TINY = ModelConfig(
    VOCABULARY, 8, 12, 1, 2, 1, max_position_embeddings=64, initializer_range=0.9, attention=AttentionKernel.SDPA
)


def build_model(seed=0, **changes):
    model = Transformer(replace(TINY, **changes))
    model.init_weights(seed)
    return model.double().eval()


def texts(answers, prompts=None, ids=None):
    """Completions of given answers, by default after the prompt 2 3."""
    prompts = [[2, 3]] * len(answers) if prompts is None else prompts
    return Completions.of_texts(prompts, answers, range(len(answers)) if ids is None else ids, MASK)


def scored(estimator, completions, model, update=0, seed=7, **options):
    """Scores with the noise of an update."""
    return score(estimator, completions, model, completions_noise(completions, seed, update), MASK, **options)


def rollout(model, prompts, is_stopping=True, score_after_eos=False, lookback=0, **changes):
    """(completions, traces) of a generation at temperature 1."""
    settings = {"max_new_tokens": 6, "block_length": 3, "num_steps": None, "tokens_per_step": 1, "temperature": 1.0}
    config = GenerationConfig(**(settings | changes))
    recorder = Recorder(len(prompts))
    stops = [STOP] if is_stopping else []
    generate(
        model,
        [torch.tensor(prompt, dtype=torch.int64) for prompt in prompts],
        config,
        mask_token_id=MASK,
        stop_token_ids=stops,
        max_position_embeddings=64,
        lookback=lookback,
        on_commit=recorder,
    )
    traces = recorder.traces()
    completions = Completions.of_rollout(
        prompts,
        traces,
        range(len(prompts)),
        stop_token_ids=stops,
        pad_token_id=MASK,
        is_appended=config.canvas == "append",
        is_remasked=bool(config.remasking),
        score_after_eos=score_after_eos,
    )
    return completions, traces


@pytest.fixture(scope="session")
def model():
    return build_model()


@pytest.fixture(scope="session")
def world():
    """The functions above, as a fixture, because tests cannot import conftest."""
    functions = {"build_model": build_model, "texts": texts, "scored": scored, "rollout": rollout}
    return type("World", (), {name: staticmethod(function) for name, function in functions.items()} | {"MASK": MASK})

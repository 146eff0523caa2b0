from dataclasses import replace

import pytest
import torch

from lit_illada.batch import Layout
from lit_illada.errors import UserError
from lit_illada.generation.autoregressive import generate_autoregressive
from lit_illada.generation.cache import DualCache
from lit_illada.generation.commit_rules import Threshold
from lit_illada.generation.config import Canvas, GenerationConfig

MASK, EOS = 0, 1
CONFIG = GenerationConfig(max_new_tokens=12, block_length=6, num_steps=6)


@pytest.fixture
def causal(tiny_model):
    return tiny_model(is_causal=True)


@pytest.fixture
def write(causal):
    def write(prompts, config=CONFIG, *, limit=64, stop_token_ids=(EOS,), **options):
        return generate_autoregressive(
            causal,
            prompts,
            config,
            bos_token_id=EOS,
            mask_token_id=MASK,
            stop_token_ids=stop_token_ids,
            max_position_embeddings=limit,
            **options,
        )

    return write


@torch.no_grad()
def greedy_without_cache(model, prompt, max_new_tokens):
    ids = [EOS, *prompt.tolist()]
    for _ in range(max_new_tokens):
        logits = model(torch.tensor([ids]), Layout.whole_rows(1, len(ids)))[0, -1]
        logits[MASK] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == EOS:
            return ids[len(prompt) + 1 : -1]
    return ids[len(prompt) + 1 :]


def test_cached_passes_equal_full_passes(causal, write, ragged):
    expected = [greedy_without_cache(causal, prompt, 12) for prompt in ragged]
    generation = write(ragged)
    assert generation.texts() == expected
    assert generation.num_forwards <= 12
    assert [write([prompt]).texts()[0] for prompt in ragged] == expected


@torch.no_grad()
def test_sampling_draws_from_the_tempered_distribution_of_full_passes(causal, write, prompts):
    config = replace(CONFIG, temperature=0.7, top_p=0.9, seed=3)
    generator = torch.Generator().manual_seed(3)
    ids = [EOS, *prompts[0].tolist()]
    for _ in range(12):
        logits = causal(torch.tensor([ids]), Layout.whole_rows(1, len(ids)))[0, -1].double()
        logits[MASK] = -torch.inf
        probs = (logits / 0.7).softmax(-1)
        order = probs.argsort(descending=True)
        total = 0.0
        for index in order.tolist():
            if total >= 0.9:
                logits[index] = -torch.inf
            total += float(probs[index])
        noise = torch.rand(1, 23, dtype=torch.float64, generator=generator)[0]
        ids.append(int((logits - 0.7 * (-noise.log()).log()).argmax()))
    assert write(prompts[:1], config, stop_token_ids=()).texts() == [ids[6:]]


def test_a_sampled_row_does_not_depend_on_its_batch(write, ragged):
    config = replace(CONFIG, temperature=1.0)
    together = write(ragged, config).texts()
    assert [write([p], config, row_numbers=[row]).texts()[0] for row, p in enumerate(ragged)] == together


def test_no_row_stops_before_min_new_tokens_or_continues_after_its_stop(write, ragged):
    generation = write(ragged, replace(CONFIG, min_new_tokens=5, temperature=3.0))
    assert (generation.num_tokens >= 5).all()
    assert (generation.is_stopped & (generation.num_tokens < 11)).any()
    for ids, num_tokens in zip(generation.token_ids, generation.num_tokens, strict=True):
        assert (ids[num_tokens:] == EOS).all()


def test_the_callback_receives_one_token_per_row_and_step(write, prompts):
    steps = []

    def on_commit(commit):
        assert commit.is_committed.nonzero()[:, 1].unique().tolist() == [5 + commit.step]
        assert (commit.confidence > 0).equal(commit.is_committed)
        assert commit.token_ids[:, :5].equal(torch.stack(prompts))
        steps.append(commit.step)

    write(prompts, stop_token_ids=(), on_commit=on_commit)
    assert steps == list(range(12))


@pytest.mark.parametrize(
    "changes",
    [{"canvas": Canvas.fixed}, {"commit_rule": Threshold()}, {"cache": DualCache()}, {"guidance_scale": 1.0}],
)
def test_settings_of_diffusion_generation_are_rejected(write, prompts, changes):
    with pytest.raises(UserError, match=f"generation.{next(iter(changes))} is set, but the model is causal"):
        write(prompts, replace(CONFIG, **changes))


def test_a_prompt_that_leaves_no_positions_is_rejected(write, prompts):
    assert write(prompts, limit=17)
    with pytest.raises(UserError, match="16 positions of the model"):
        write(prompts, limit=16)

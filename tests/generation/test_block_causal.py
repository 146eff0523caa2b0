"""Generation in the blocks of block diffusion, whose cached prefix is exact."""

from dataclasses import replace

import pytest
import torch

from lit_illada.batch import Layout
from lit_illada.generation.cache import DualCache, PrefixCache
from lit_illada.generation.commit_rules import Threshold
from lit_illada.generation.config import Canvas, GenerationConfig
from lit_illada.generation.generate import generate
from lit_illada.generation.loop_control.loop_response import RemaskSpan
from lit_illada.model.config import AttentionKernel
from lit_illada.model.kv_cache import KeyValueCache
from lit_illada.objective.blocks import divide

MASK = 0
CONFIG = GenerationConfig(max_new_tokens=18, block_length=4, num_steps=3)


def generated(model, prompts, config, logits_fn=None, **options):
    """The generation, and the logits of every step."""
    seen = []

    def observed(ids, layout, select, *, cache, start):
        seen.append((logits_fn or model)(ids, layout, select, cache=cache, start=start))
        return seen[-1]

    defaults = {"mask_token_id": MASK, "stop_token_ids": [], "max_position_embeddings": 64}
    own = {"lookback": int(model.config.predicts_next), "block_length": model.config.block_length}
    return generate(observed, prompts, config, **{**defaults, **own, **options}), seen


def without_empty(prompts):
    return [prompt for prompt in prompts if len(prompt)]


@pytest.mark.parametrize("attention", [AttentionKernel.SDPA, AttentionKernel.MATMUL])
@pytest.mark.parametrize("predicts_next", [False, True])
@pytest.mark.parametrize("canvas", Canvas)
@pytest.mark.parametrize("cache", [PrefixCache(), PrefixCache(refresh_every_steps=2), DualCache()])
@pytest.mark.parametrize("is_early", [False, True])
def test_the_cache_changes_no_token(tiny_model, ragged, attention, predicts_next, canvas, cache, is_early):
    """Rows that fill a block early return in the next one. Logits differ by the rounding of products of other sizes."""
    model = tiny_model(block_length=4, attention=attention, predicts_next=predicts_next)
    config = replace(CONFIG, canvas=canvas, guidance_scale=0.5)
    if is_early:
        config = replace(config, commit_rule=Threshold(0.2), num_steps=4)
    plain, logits = generated(model, without_empty(ragged), config)
    cached, cached_logits = generated(model, without_empty(ragged), replace(config, cache=cache))
    assert cached.token_ids.equal(plain.token_ids)
    assert cached.num_forwards == plain.num_forwards
    torch.testing.assert_close(cached_logits, logits, atol=2e-5, rtol=1e-5)


class Recomputed:
    """The model without reuse between steps: every call computes the prefix anew, in the windows of the first steps."""

    def __init__(self, model):
        self.model = model
        self.windows = []

    def __call__(self, ids, layout, select, *, cache, start):
        stop = start + ids.shape[1]
        if not self.windows:
            self.text = torch.zeros(len(ids), 64, dtype=torch.int64)
        self.text[:, start:stop] = ids
        fresh = KeyValueCache()
        for first, last in self.windows:
            part = replace(layout, position_ids=layout.position_ids[:, :last], blocks=layout.blocks[:, :last])
            self.model(self.text[:, first:last], part, cache=fresh, start=first)
        if not self.windows or stop > self.windows[-1][1]:
            self.windows.append((start, stop))
        return self.model(ids, layout, select, cache=fresh, start=start)


@pytest.mark.parametrize("predicts_next", [False, True])
def test_reused_keys_and_values_equal_recomputed_ones_to_the_bit(tiny_model, ragged, predicts_next):
    model = tiny_model(block_length=4, predicts_next=predicts_next)
    config = replace(CONFIG, cache=PrefixCache())
    cached, logits = generated(model, without_empty(ragged), config)
    recomputed, recomputed_logits = generated(model, without_empty(ragged), config, Recomputed(model))
    assert cached.token_ids.equal(recomputed.token_ids)
    assert all(one.equal(other) for one, other in zip(logits, recomputed_logits, strict=True))


def test_a_block_computes_the_columns_from_the_block_before_it_on(tiny_model, prompts):
    model, windows = tiny_model(block_length=4), []

    def logits_fn(ids, layout, select, *, cache, start):
        windows.append((start, start + ids.shape[1]))
        return model(ids, layout, select, cache=cache, start=start)

    generated(model, prompts, replace(CONFIG, max_new_tokens=12, cache=PrefixCache()), logits_fn)
    assert windows == [(0, 9), (5, 9), (5, 9), (5, 13), (9, 13), (9, 13), (9, 17), (13, 17), (13, 17)]


@pytest.mark.parametrize("canvas", Canvas)
def test_rewritten_loops_are_the_same_with_a_cache(tiny_model, ragged, canvas):
    """Earlier blocks are reopened in some rows, each of which must read its own text anew."""
    model = tiny_model(block_length=4)
    on_loop = RemaskSpan(min_period=1, min_cycles=2, min_length=5, max_remasks=2)
    config = replace(CONFIG, canvas=canvas, max_new_tokens=32, on_loop=on_loop, commit_rule=Threshold(0.3))
    plain, logits = generated(model, ragged, config)
    cached, cached_logits = generated(model, ragged, replace(config, cache=PrefixCache()))
    num_remasked = [sum(alarm.num_remasked for alarm in row.alarms) for row in plain.events]
    assert len(set(num_remasked)) > 2
    assert cached.token_ids.equal(plain.token_ids)
    torch.testing.assert_close(cached_logits, logits, atol=2e-5, rtol=1e-5)


def test_a_row_does_not_depend_on_the_others(tiny_model, ragged):
    model = tiny_model(block_length=4).double()  # in float32, rounding decides between near-equal confidences
    together, _ = generated(model, ragged, replace(CONFIG, cache=PrefixCache()))
    for row, prompt in enumerate(ragged):
        alone, _ = generated(model, [prompt], CONFIG)
        assert alone.token_ids[0].equal(together.token_ids[row])


def test_the_model_sees_the_layout_of_training(tiny_model):
    """The prompt is divided backwards from its end, and each block of the completion follows it."""
    layouts = []

    def logits_fn(ids, layout, select, *, cache, start):
        layouts.append(layout)
        return tiny_model(block_length=4)(ids, layout, select, cache=cache, start=start)

    prompt = torch.arange(2, 9)
    generated(tiny_model(block_length=4), [prompt], replace(CONFIG, max_new_tokens=6, num_steps=1), logits_fn)
    assert len(layouts) == 2
    for layout in layouts:
        columns = layout.position_ids.shape[1]
        trained = divide(Layout.whole_rows(1, columns), torch.arange(columns)[None] >= len(prompt), 4)
        assert (layout.blocks - layout.blocks[0, 0]).equal(trained)


def test_blocks_of_one_token_and_shifted_predictions_write_what_the_causal_model_writes(tiny_model):
    prompt = torch.tensor([5, 3, 8, 2])
    causal, blockwise = tiny_model(is_causal=True), tiny_model(block_length=1, predicts_next=True)
    text = prompt.clone()
    for _ in range(10):
        logits = causal(text[None], Layout.whole_rows(1, len(text)))[0, -1]
        logits[MASK] = -torch.inf
        text = torch.cat([text, logits.argmax()[None]])
    written, _ = generated(blockwise, [prompt], replace(CONFIG, max_new_tokens=10, cache=PrefixCache()))
    assert written.token_ids[0].equal(text[4:])


def test_the_block_length_of_the_model_replaces_that_of_the_config():
    config = GenerationConfig(max_new_tokens=64)
    assert config.with_block_length(32) is config
    short = config.with_block_length(4)
    assert (short.block_length, short.num_steps) == (4, 4)
    assert replace(config, num_steps=8).with_block_length(64).num_steps == 16
    many = replace(config, num_steps=None, tokens_per_step=16).with_block_length(4)
    assert (many.tokens_per_step, many.num_steps) == (4, None)

from dataclasses import replace

import pytest
import torch

from lit_illada.batch import Layout
from lit_illada.errors import UserError
from lit_illada.generation.cache import CACHES, DualCache, NoCache, PrefixCache
from lit_illada.generation.commit_rules import Threshold
from lit_illada.generation.config import Canvas, GenerationConfig
from lit_illada.model.config import AttentionKernel
from lit_illada.model.kv_cache import KeyValueCache

CONFIG = GenerationConfig(max_new_tokens=18, block_length=6, num_steps=4)


@pytest.mark.parametrize("canvas", Canvas)
@pytest.mark.parametrize("cache", [PrefixCache, DualCache])
def test_a_cache_refreshed_in_every_step_changes_nothing(write, ragged, canvas, cache):
    config = replace(CONFIG, canvas=canvas, guidance_scale=0.5)
    plain = write(ragged, config)
    cached = write(ragged, replace(config, cache=cache(refresh_every_steps=1)))
    assert cached.token_ids.equal(plain.token_ids)


@pytest.mark.parametrize("refresh_every_steps", [None, 2])
@pytest.mark.parametrize("canvas", Canvas)
@pytest.mark.parametrize("cache", [PrefixCache, DualCache])
def test_the_model_computes_uncached_columns_only(model, write, prompts, canvas, cache, refresh_every_steps):
    windows = []

    def logits_fn(ids, layout, select, *, cache, start):
        windows.append((start, start + ids.shape[1]))
        return model(ids, layout, select, cache=cache, start=start)

    write(prompts, replace(CONFIG, canvas=canvas, cache=cache(refresh_every_steps)), logits_fn=logits_fn)
    expected = []
    for block in range(3):
        first, last = 5 + 6 * block, 11 + 6 * block
        end = 23 if canvas is Canvas.fixed else last
        for step in range(4):
            is_refresh = step == 0 or (refresh_every_steps == 2 and step == 2)
            expected.append((0, end) if is_refresh else (first, end if cache is PrefixCache else last))
    assert windows == expected


def test_a_model_with_shifted_predictions_also_computes_the_position_before_the_block(model, write, prompts):
    starts = []

    def logits_fn(ids, layout, select, *, cache, start):
        starts.append(start)
        assert select.sum() == (ids[select] == 0).sum() > 0
        return model(ids, layout, select, cache=cache, start=start)

    plain = write(prompts, replace(CONFIG, cache=DualCache()))
    shifted = write(prompts, replace(CONFIG, cache=DualCache()), logits_fn=logits_fn, lookback=1)
    assert starts == [0, 4, 4, 4, 0, 10, 10, 10, 0, 16, 16, 16]
    assert shifted.token_ids.shape == plain.token_ids.shape


def slow_dual_cache(model, x, block, steps):
    """Fast-dLLM's loop for one row and one block: a full pass at first, then only the block over the keys and values
    of that pass, which a hook holds fast: each layer sees its first pass's input outside the block."""
    seen = {}

    def hold(layer, inputs):
        (hidden,) = inputs
        if layer not in seen:
            seen[layer] = hidden.clone()
        held = seen[layer].clone()
        held[:, block] = hidden[:, block]
        return (held,)

    hooks = [layer.input_layernorm.register_forward_pre_hook(hold) for layer in model.model.layers]
    for step in range(steps):
        logits = model(x, Layout.whole_rows(*x.shape))[:, block].double()
        logits[:, :, 0] = -torch.inf
        confidence, proposed = logits.softmax(-1).max(-1)
        masked = x[:, block] == 0
        count = -(-int(masked.sum()) // (steps - step))
        chosen = confidence.masked_fill(~masked, -1)[0].topk(count).indices
        x[0, block.start + chosen] = proposed[0, chosen]
    for hook in hooks:
        hook.remove()
    return x


@torch.no_grad()
def test_the_dual_cache_equals_fast_dllms(model, write, prompts):
    x = torch.nn.functional.pad(prompts[0], (0, 18))[None]
    for first in (5, 11, 17):
        x = slow_dual_cache(model, x, slice(first, first + 6), 4)
    generation = write(prompts[:1], replace(CONFIG, canvas=Canvas.fixed, cache=DualCache()))
    assert generation.token_ids.equal(x[:, 5:])


def test_rows_that_leave_a_block_early_leave_the_cache_too(write, ragged):
    config = replace(CONFIG, num_steps=6, commit_rule=Threshold(0.25))
    plain = write(ragged, config)
    cached = write(ragged, replace(config, cache=DualCache(refresh_every_steps=1)))
    assert cached.token_ids.equal(plain.token_ids)
    assert write(ragged, replace(config, cache=DualCache())).token_ids.shape == plain.token_ids.shape


def test_a_refresh_interval_of_0_is_rejected():
    with pytest.raises(UserError, match="refresh_every_steps is 0"):
        DualCache(0)
    assert not NoCache().is_on
    assert set(CACHES) == {"none", "prefix", "dual"}


@pytest.mark.parametrize("attention", [AttentionKernel.SDPA, AttentionKernel.MATMUL])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("padding", [[0, 0], [0, 3]])
def test_a_window_over_a_fresh_cache_equals_the_full_pass(tiny_model, attention, is_causal, padding):
    model = tiny_model(is_causal=is_causal, attention=attention)
    ids = torch.randint(23, (2, 12), generator=torch.Generator().manual_seed(1))
    layout = Layout.left_padded(padding, 12)
    cache = KeyValueCache()
    with torch.no_grad():
        whole = model(ids, layout, cache=cache)
        for window in (slice(4, 12), slice(4, 7), slice(11, 12)):
            part = model(ids[:, window], layout, cache=cache, start=window.start)
            torch.testing.assert_close(part, whole[:, window], atol=1e-5, rtol=1e-5)

"""LLaDA's settings give, token for token, what the published algorithm gives."""

from dataclasses import replace

import pytest
import torch

from lit_illada.batch import Layout
from lit_illada.generation.config import Canvas, GenerationConfig
from lit_illada.generation.selection import LowConfidence, Random

MASK, EOS = 0, 1
CONFIG = GenerationConfig(canvas=Canvas.fixed, max_new_tokens=24, block_length=8, num_steps=4)


def get_num_transfer_tokens(mask_index, steps):
    mask_num = mask_index.sum(dim=1)
    num_transfer_tokens = torch.zeros(len(mask_num), steps, dtype=torch.int64)
    for i in range(len(mask_num)):
        for step in range(steps):
            num_transfer_tokens[i, step] = mask_num[i] // steps
        for step in range(int(mask_num[i] % steps)):
            num_transfer_tokens[i, step] += 1
    return num_transfer_tokens


@torch.no_grad()
def published_generate(
    model, prompt, *, steps, gen_length, block_length, cfg_scale=0.0, remasking="low_confidence", rand=None,
    logits_eos_inf=False, confidence_eos_inf=False,
):  # fmt: skip
    """generate() of LLaDA's repository, at temperature 0, step by step as it stands there, on every column of the
    canvas. `rand` draws what torch.rand draws there. Two lines are ours: [M] is never proposed (a trained model does
    not), and of equal confidences the earlier is taken (topk there leaves it open).
    """
    prompt_length = prompt.shape[1]
    x = torch.full((len(prompt), prompt_length + gen_length), MASK)
    x[:, :prompt_length] = prompt
    prompt_index = x != MASK
    num_blocks = gen_length // block_length
    steps = steps // num_blocks
    for num_block in range(num_blocks):
        first, last = prompt_length + num_block * block_length, prompt_length + (num_block + 1) * block_length
        num_transfer_tokens = get_num_transfer_tokens(x[:, first:last] == MASK, steps)
        for i in range(steps):
            mask_index = x == MASK
            if cfg_scale > 0:
                un_x = x.clone()
                un_x[prompt_index] = MASK
                x_ = torch.cat([x, un_x], dim=0)
                logits, un_logits = model(x_, Layout.whole_rows(*x_.shape)).double().chunk(2, dim=0)
                logits = un_logits + (cfg_scale + 1) * (logits - un_logits)
            else:
                logits = model(x, Layout.whole_rows(*x.shape)).double()
            logits[:, :, MASK] = -torch.inf
            if logits_eos_inf:
                logits[:, :, EOS] = -torch.inf
            x0 = torch.argmax(logits, dim=-1)
            if confidence_eos_inf:
                logits[:, :, EOS] = -torch.inf
            if remasking == "low_confidence":
                x0_p = torch.gather(logits.softmax(-1), -1, x0[:, :, None])[:, :, 0]
            else:
                x0_p = torch.zeros(x.shape, dtype=torch.float64)
                x0_p[:, first:last] = rand(len(x), block_length)
            x0_p[:, last:] = -torch.inf
            x0 = torch.where(mask_index, x0, x)
            confidence = torch.where(mask_index, x0_p, -torch.inf)
            transfer_index = torch.zeros_like(x0, dtype=torch.bool)
            for j in range(len(confidence)):
                select_index = confidence[j].argsort(descending=True, stable=True)[: num_transfer_tokens[j, i]]
                transfer_index[j, select_index] = True
            x[transfer_index] = x0[transfer_index]
    return x[:, prompt_length:]


@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
@pytest.mark.parametrize(("block_length", "num_steps"), [(24, 24), (24, 5), (8, 4), (8, 3), (6, 6)])
def test_low_confidence_remasking(model, write, prompts, cfg_scale, block_length, num_steps):
    config = replace(CONFIG, block_length=block_length, num_steps=num_steps, guidance_scale=cfg_scale)
    sizes = {"steps": num_steps * 24 // block_length, "gen_length": 24, "block_length": block_length}
    expected = published_generate(model, torch.stack(prompts), **sizes, cfg_scale=cfg_scale)
    generation = write(prompts, config, stop_token_ids=[EOS])
    assert generation.token_ids.equal(expected)
    assert generation.num_forwards == sizes["steps"] * (2 if cfg_scale else 1)


@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
def test_random_remasking(model, write, prompts, cfg_scale):
    config = replace(CONFIG, commit_rule=Random(), guidance_scale=cfg_scale, seed=5)
    generator = torch.Generator().manual_seed(5)

    def rand(rows, width):
        return torch.rand(rows, width, dtype=torch.float64, generator=generator)

    sizes = {"steps": 12, "gen_length": 24, "block_length": 8}
    one = torch.stack(prompts[:1])
    expected = published_generate(model, one, **sizes, cfg_scale=cfg_scale, remasking="random", rand=rand)
    assert write(prompts[:1], config).token_ids.equal(expected)
    assert not write(prompts[:1], replace(config, commit_rule=LowConfidence())).token_ids.equal(expected)


def always_ending(model):
    """The model with a strong wish to end, so that the controls of the end have something to do."""

    def logits_fn(ids, layout, select=None, **options):
        logits = model(ids, layout, select, **options).clone()
        logits[..., EOS] += 1.5
        return logits

    return logits_fn


def test_the_controls_of_the_end(model, write, prompts):
    eager = always_ending(model)
    sizes = {"steps": 12, "gen_length": 24, "block_length": 8}
    never = published_generate(eager, torch.stack(prompts), **sizes, logits_eos_inf=True)
    late = published_generate(eager, torch.stack(prompts), **sizes, confidence_eos_inf=True)
    options = {"logits_fn": eager, "stop_token_ids": [EOS]}
    assert write(prompts, replace(CONFIG, min_new_tokens=24), **options).token_ids.equal(never)
    assert write(prompts, replace(CONFIG, zero_stop_confidence=True), **options).token_ids.equal(late)
    free = write(prompts, CONFIG, **options).token_ids
    assert not free.equal(never)
    assert not free.equal(late)

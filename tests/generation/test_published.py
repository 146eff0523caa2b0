"""LLaDA's and Dream's settings equal their published samplers token for token."""

from dataclasses import replace

import pytest
import torch

from lit_illada.batch import Layout
from lit_illada.config import load
from lit_illada.errors import UserError
from lit_illada.generation.commit_rules import DreamSchedule, Entropy, LowConfidence, Margin, Random
from lit_illada.generation.config import Canvas, GenerationConfig

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
def test_low_confidence_equals_lladas_published_sampler(model, write, prompts, cfg_scale, block_length, num_steps):
    config = replace(CONFIG, block_length=block_length, num_steps=num_steps, guidance_scale=cfg_scale)
    sizes = {"steps": num_steps * 24 // block_length, "gen_length": 24, "block_length": block_length}
    expected = published_generate(model, torch.stack(prompts), **sizes, cfg_scale=cfg_scale)
    generation = write(prompts, config, stop_token_ids=[EOS])
    assert generation.token_ids.equal(expected)
    assert generation.num_forwards == sizes["steps"] * (2 if cfg_scale else 1)


@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
def test_random_commits_equal_lladas_published_sampler(model, write, prompts, cfg_scale):
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
    """A model that favours end-of-text, so that the end-of-text controls take effect."""

    def logits_fn(ids, layout, select=None, **options):
        logits = model(ids, layout, select, **options).clone()
        logits[..., EOS] += 1.5
        return logits

    return logits_fn


def test_end_of_text_controls_equal_lladas_published_sampler(model, write, prompts):
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


@torch.no_grad()
def dream_generate(model, prompt, *, steps, gen_length, alg, eps=1e-3):
    """Dream's sampling loop at temperature 0 and alg_temp None, written from its formulas.

    Times lie on a linear grid from 1 to eps; a step commits floor(n (1 - s/t)) of the n masked tokens, the last one all
    of them. [M] is never proposed, and of equal confidences the earlier is taken.

    Returns the tokens, and how many each step committed.
    """
    length = prompt.shape[1]
    x = torch.cat([prompt, torch.full((len(prompt), gen_length), MASK)], dim=1)
    timesteps = torch.linspace(1, eps, steps + 1)
    counts = []
    for i in range(steps):
        is_masked = x == MASK
        logits = model(x, Layout.whole_rows(*x.shape)).double()
        logits[:, :, MASK] = -torch.inf
        probs = logits.softmax(-1)
        confidence, x0 = probs.max(-1)
        if alg == "topk_margin":
            top = probs.topk(2, dim=-1).values
            confidence = top[..., 0] - top[..., 1]
        elif alg == "entropy":
            confidence = (probs * torch.log(probs + 1e-10)).sum(-1)
        t, s = timesteps[i], timesteps[i + 1]
        num_masked = is_masked.sum() / len(x)
        number = int(num_masked * (1 - s / t)) if i < steps - 1 else int(num_masked)
        counts.append(number)
        order = confidence.masked_fill(~is_masked, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        for row, chosen in enumerate(order[:, :number]):
            x[row, chosen] = x0[row, chosen]
    return x[:, length:], counts


@pytest.mark.parametrize(
    ("alg", "rule"), [("maskgit_plus", LowConfidence()), ("topk_margin", Margin()), ("entropy", Entropy())]
)
@pytest.mark.parametrize("steps", [24, 20, 7, 1])
def test_commits_equal_dreams_published_sampler(model, write, prompts, alg, rule, steps):
    config = replace(CONFIG, block_length=24, num_steps=steps, commit_rule=rule, commit_schedule=DreamSchedule())
    expected, counts = dream_generate(model, torch.stack(prompts), steps=steps, gen_length=24, alg=alg)
    assert sum(counts) == 24
    committed = [0] * steps

    def count(commit):
        committed[commit.step] += int(commit.is_committed[0].sum())

    assert write(prompts, config, on_commit=count).token_ids.equal(expected)
    assert committed == counts
    if steps == 20:
        even = write(prompts, replace(config, commit_schedule=CONFIG.commit_schedule)).token_ids
        assert not even.equal(expected), "the schedules differ, and so do the texts"


@pytest.mark.parametrize("num_tokens", [1, 7, 32, 100, 512])
@pytest.mark.parametrize("steps", [1, 2, 8, 100, 256])
def test_dreams_commit_counts_equal_its_formula_and_sum_to_the_block(num_tokens, steps):
    times = torch.linspace(1, 1e-3, steps + 1)
    left = num_tokens
    for step in range(steps):
        expected = int(torch.tensor(left) * (1 - times[step + 1] / times[step])) if step < steps - 1 else left
        assert DreamSchedule()(torch.tensor([left]), steps - step, steps).tolist() == [expected]
        left -= expected
    assert left == 0


def test_the_dream_preset_equals_the_published_settings(model, write, prompts):
    preset = load("generate", ["generation=dream"]).generation
    assert preset == GenerationConfig(
        canvas=Canvas.fixed,
        max_new_tokens=512,
        block_length=512,
        num_steps=512,
        commit_rule=Entropy(),
        commit_schedule=DreamSchedule(epsilon=1e-3),
    )
    short = replace(preset, max_new_tokens=32, block_length=32, num_steps=16)
    expected, _ = dream_generate(model, torch.stack(prompts), steps=16, gen_length=32, alg="entropy")
    assert write(prompts, short).token_ids.equal(expected)


def test_an_invalid_end_of_the_time_grid_is_rejected():
    with pytest.raises(UserError, match=r"commit_schedule, epsilon is 1.0: it must be above 0 and below 1"):
        DreamSchedule(1.0)

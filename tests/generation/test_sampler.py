from dataclasses import replace

import pytest
import torch

from lit_illada.batch import Layout
from lit_illada.errors import UserError
from lit_illada.generation.commit_rules import Threshold
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.remasking import ReMDMCap

MASK, STOP, VOCABULARY = 0, 1, 23
CONFIG = GenerationConfig(max_new_tokens=12, block_length=6, num_steps=4)


def published_sampler(model, x, steps, block_length):
    """LLaDA's sampler (arXiv 2502.09992, generate.py of its repository) at temperature 0 on one appended block: the
    same order of operations on the whole row, with its own count of tokens per step."""
    block_start = x.shape[1]
    x = torch.cat([x, torch.full((len(x), block_length), MASK)], dim=1)
    mask_num = (x[:, block_start:] == MASK).sum(1)
    num_transfer_tokens = [[n // steps + (i < n % steps) for i in range(steps)] for n in mask_num.tolist()]
    for i in range(steps):
        mask_index = x == MASK
        logits = model(x, Layout.whole_rows(*x.shape)).double()
        logits[:, :, MASK] = -torch.inf
        x0 = logits.argmax(-1)
        x0_p = torch.gather(logits.softmax(-1), -1, x0[:, :, None])[:, :, 0]
        x0 = torch.where(mask_index, x0, x)
        confidence = torch.where(mask_index, x0_p, -torch.inf)
        for j in range(len(x)):
            _, select_index = torch.topk(confidence[j], k=num_transfer_tokens[j][i])
            x[j, select_index] = x0[j, select_index]
    return x


@pytest.mark.parametrize("num_steps", [1, 2, 4, 6])
def test_greedy_generation_equals_the_published_block_sampler(model, write, prompts, num_steps):
    expected = torch.stack(prompts)
    with torch.no_grad():
        for _ in range(2):
            expected = published_sampler(model, expected, num_steps, 6)
    generation = write(prompts, replace(CONFIG, num_steps=num_steps))
    assert generation.token_ids.equal(expected[:, 5:])
    assert generation.num_forwards == 2 * num_steps


def test_one_block_with_one_step_is_one_forward_and_its_argmax(model, write, prompts):
    config = replace(CONFIG, max_new_tokens=6, num_steps=1)
    masked = torch.nn.functional.pad(torch.stack(prompts), (0, 6), value=MASK)
    logits = model(masked, Layout.whole_rows(2, 11))[:, 5:]
    logits[:, :, MASK] = -torch.inf
    generation = write(prompts, config)
    assert generation.token_ids.equal(logits.argmax(-1))
    assert generation.num_forwards == 1


@pytest.mark.parametrize(("tokens_per_step", "num_steps"), [(1, 6), (2, 3), (4, 2), (6, 1)])
def test_tokens_per_step_equals_the_corresponding_num_steps(write, prompts, tokens_per_step, num_steps):
    by_tokens = write(prompts, replace(CONFIG, num_steps=None, tokens_per_step=tokens_per_step))
    by_steps = write(prompts, replace(CONFIG, num_steps=num_steps))
    assert by_tokens.token_ids.equal(by_steps.token_ids)
    assert by_tokens.num_forwards == by_steps.num_forwards == 2 * num_steps


def test_the_seed_determines_the_text_at_a_temperature(write, prompts):
    texts = [write(prompts, replace(CONFIG, temperature=1.5, seed=seed)).texts() for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_the_mask_token_is_never_generated(write, prompts):
    def wants_masks(ids, layout, select, *, cache, start):
        logits = torch.zeros(int(select.sum()), VOCABULARY, dtype=torch.float64)
        logits[:, MASK] = 100.0
        return logits

    for temperature in (0.0, 1.0):
        config = replace(CONFIG, temperature=temperature)
        assert not write(prompts, config, logits_fn=wants_masks).token_ids.eq(MASK).any()


def scripted(*scripts):
    """A model that generates scripts[b] in row b after a prompt of 5 tokens, and a list of the rows of each call."""
    rows_read = []

    def logits_fn(ids, layout, select, *, cache, start):
        rows_read.append(ids[:, 0].tolist())
        wanted = torch.stack([torch.tensor(scripts[row])[: ids.shape[1] - 5] for row in ids[:, 0].tolist()])
        return 9.0 * torch.nn.functional.one_hot(torch.nn.functional.pad(wanted, (5, 0)), VOCABULARY)[select]

    return logits_fn, rows_read


def test_a_row_stops_at_a_stop_token_of_a_finished_block_and_costs_no_more_passes(write):
    early, late = [7] * 12, [8] * 12
    early[3] = late[8] = STOP
    logits_fn, rows_read = scripted(early, late)
    numbered = torch.arange(2)[:, None].repeat(1, 5)  # row b's prompt is b, so that `scripted` knows the row
    generation = write(numbered, replace(CONFIG, max_new_tokens=18), logits_fn=logits_fn, stop_token_ids=[STOP])
    assert generation.texts() == [[7] * 3, [8] * 8]
    assert generation.is_stopped.tolist() == [True, True]
    assert rows_read == [[0, 1]] * 4 + [[1]] * 4
    assert generation.token_ids.shape == (2, 12), "both have stopped: no third block"


def test_a_row_whose_block_is_full_costs_no_more_passes_in_that_block(write):
    rows_read = []

    def logits_fn(ids, layout, select, *, cache, start):
        rows_read.append(ids[:, 0].tolist())
        is_sure = ids[:, :1].expand_as(select)[select] == 1
        return torch.where(is_sure[:, None], 99.0, 0.1) * torch.nn.functional.one_hot(torch.tensor(7), VOCABULARY)

    numbered = torch.arange(2)[:, None].repeat(1, 5)
    write(numbered, replace(CONFIG, num_steps=6, commit_rule=Threshold(0.9)), logits_fn=logits_fn)
    assert rows_read == 2 * ([[0, 1]] + [[0]] * 5)


def test_without_a_stop_token_the_budget_ends_the_text_even_within_a_block(write):
    logits_fn, _ = scripted([7] * 16)
    config = replace(CONFIG, max_new_tokens=8)
    generation = write(torch.zeros(1, 5, dtype=torch.long), config, logits_fn=logits_fn, stop_token_ids=[STOP])
    assert generation.texts() == [[7] * 8]
    assert generation.is_stopped.tolist() == [False]
    assert generation.num_forwards == 4 + 2, "a cut block of 2 tokens needs no more than 2 steps"


def test_a_budget_below_the_block_length_is_one_block_of_that_size(write, prompts):
    short = write(prompts, replace(CONFIG, max_new_tokens=5))
    assert torch.equal(short.token_ids, write(prompts, replace(CONFIG, max_new_tokens=5, block_length=5)).token_ids)
    assert write(prompts, replace(CONFIG, max_new_tokens=2)).num_forwards == 2


def test_the_callback_receives_every_committed_token_once_with_confidence_and_entropy(write, prompts):
    seen, states = [], []

    def on_commit(commit):
        seen.append((commit.block, commit.step, commit.is_committed.sum().item()))
        states.append((commit.token_ids.clone(), commit.is_committed.clone()))
        assert (commit.confidence > 0).equal(commit.is_committed)
        assert (commit.entropy > 0).equal(commit.is_committed)
        assert not commit.is_remasked.any()
        assert commit.prompt_length == 5

    generation = write(prompts[:1], on_commit=on_commit)
    assert seen == [(b, s, n) for b in range(2) for s, n in enumerate([2, 2, 1, 1])]
    for token_ids, is_committed in states:
        full = torch.cat([prompts[0][None], generation.token_ids], dim=1)[:, : token_ids.shape[1]]
        assert token_ids[is_committed].equal(full[is_committed])
    assert states[0][0].eq(MASK).sum() == 4


def test_the_prompt_is_unchanged(write, prompts):
    prompts[0][2] = MASK
    before = [prompt.clone() for prompt in prompts]
    write(prompts)
    assert all(a.equal(b) for a, b in zip(prompts, before, strict=True))


def test_an_empty_prompt_is_continued(write):
    assert write(torch.zeros(1, 0, dtype=torch.long)).token_ids.shape == (1, 12)


def test_a_text_longer_than_the_models_positions_is_rejected(write, ragged):
    assert write(ragged, limit=21).token_ids.shape == (5, 12)
    with pytest.raises(UserError, match=r"prompt has 9 tokens and generation.max_new_tokens is 12, .* 20 positions"):
        write(ragged, limit=20)


def test_no_stop_token_is_generated_before_min_new_tokens(write):
    logits_fn, _ = scripted([STOP] * 16)
    config = replace(CONFIG, min_new_tokens=7)
    generation = write(torch.zeros(1, 5, dtype=torch.long), config, logits_fn=logits_fn, stop_token_ids=[STOP])
    assert generation.num_tokens.tolist() == [7]
    assert generation.is_stopped.tolist() == [True]


def test_remasked_tokens_are_regenerated_and_no_mask_remains(write, prompts):
    config = replace(CONFIG, num_steps=12, temperature=1.0, remask=ReMDMCap(0.5))
    remasked, committed = torch.zeros(2, 12), torch.zeros(2, 12)

    def on_commit(commit):
        new = slice(5, commit.token_ids.shape[1])
        assert not (commit.is_committed & commit.is_remasked).any()
        assert commit.token_ids[commit.is_remasked].eq(MASK).all()
        remasked[:, : new.stop - 5] += commit.is_remasked[:, new]
        committed[:, : new.stop - 5] += commit.is_committed[:, new]

    generation = write(prompts, config, on_commit=on_commit)
    assert not generation.token_ids.eq(MASK).any()
    assert remasked.sum() > 0
    assert committed.equal(remasked + 1)
    assert generation.token_ids.equal(write(prompts, config).token_ids)


def test_a_custom_control_is_applied_and_receives_its_position(write, ragged):
    def check_positions(logits, positions):
        assert positions.token_ids[positions.rows, positions.columns].eq(MASK).all()
        new = positions.columns - positions.prompt_length
        return 99.0 * torch.nn.functional.one_hot(2 + new, VOCABULARY).double()

    generation = write(ragged, controls=[check_positions])
    assert generation.token_ids.equal(torch.arange(2, 14).expand(5, 12))

from dataclasses import replace

import pytest
import torch

from lit_illada.batch import Layout
from lit_illada.errors import UserError
from lit_illada.generation.block import generate, propose
from lit_illada.generation.config import GenerationConfig
from lit_illada.model.config import ModelConfig
from lit_illada.model.transformer import Transformer, whole_row_logits

MASK, STOP, VOCABULARY = 0, 1, 23
CONFIG = GenerationConfig(max_new_tokens=12, block_length=6, num_steps=4)


@pytest.fixture(scope="module")
def model():
    tiny = ModelConfig(VOCABULARY, 16, 32, 2, 2, 1, max_position_embeddings=64, initializer_range=0.5)
    model = Transformer(tiny)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def write(model):
    """generate() with this room's defaults."""

    def write(prompt_ids, config=CONFIG, *, logits_fn=None, stop_token_ids=(), seed=0, limit=64, on_commit=None):
        return generate(
            logits_fn or whole_row_logits(model),
            prompt_ids,
            config,
            mask_token_id=MASK,
            stop_token_ids=stop_token_ids,
            max_position_embeddings=limit,
            generator=torch.Generator().manual_seed(seed),
            on_commit=on_commit,
        )

    return write


def prompts(rows=2, length=5):
    return torch.randint(2, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(3))


def published_sampler(model, x, steps, block_length):
    """LLaDA's sampler (arXiv 2502.09992, generate.py of its repository) at temperature 0 on one appended block: the
    same order of operations on the whole row, with its own count of tokens a step."""
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
def test_greedy_generation_equals_the_published_block_sampler(model, write, num_steps):
    expected = prompts()
    with torch.no_grad():
        for _ in range(2):
            expected = published_sampler(model, expected, num_steps, 6)
    generation = write(prompts(), replace(CONFIG, num_steps=num_steps))
    assert generation.token_ids.equal(expected[:, 5:])
    assert generation.num_forwards == 2 * num_steps


def test_one_block_with_one_step_is_one_forward_and_its_argmax(model, write):
    config = replace(CONFIG, max_new_tokens=6, num_steps=1)
    masked = torch.nn.functional.pad(prompts(), (0, 6), value=MASK)
    logits = model(masked, Layout.whole_rows(2, 11))[:, 5:]
    logits[:, :, MASK] = -torch.inf
    generation = write(prompts(), config)
    assert generation.token_ids.equal(logits.argmax(-1))
    assert generation.num_forwards == 1


def test_the_seed_decides_the_text_at_a_temperature(write):
    hot = replace(CONFIG, temperature=1.5)
    texts = [write(prompts(), hot, seed=seed).texts() for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_gumbel_noise_samples_the_softmax_of_the_cooled_logits():
    logits = torch.tensor([0.0, 3.0, 1.0, -1.0]).expand(20_000, 4)
    token_ids, probs = propose(logits, MASK, 2.0, torch.Generator().manual_seed(0))
    frequencies = token_ids.bincount(minlength=4) / len(token_ids)
    expected = torch.tensor([-torch.inf, 1.5, 0.5, -0.5]).softmax(-1)
    torch.testing.assert_close(frequencies, expected, atol=0.015, rtol=0)
    noiseless = torch.tensor([-torch.inf, 3.0, 1.0, -1.0], dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(probs, noiseless[token_ids])


def test_the_mask_token_is_never_written(write):
    def wants_masks(ids, is_selected):
        logits = torch.zeros(int(is_selected.sum()), VOCABULARY, dtype=torch.float64)
        logits[:, MASK] = 100.0
        return logits

    for temperature in (0.0, 1.0):
        config = replace(CONFIG, temperature=temperature)
        assert not write(prompts(), config, logits_fn=wants_masks).token_ids.eq(MASK).any()


def scripted(*scripts):
    """A model that wants row b to read scripts[b] after a prompt of 5, and counts the rows it is asked for."""
    asked = []

    def logits_fn(ids, is_selected):
        asked.append(ids[:, 0].tolist())
        wanted = torch.stack([torch.tensor(scripts[row])[: ids.shape[1] - 5] for row in ids[:, 0].tolist()])
        return 9.0 * torch.nn.functional.one_hot(torch.nn.functional.pad(wanted, (5, 0)), VOCABULARY)[is_selected]

    return logits_fn, asked


def test_a_row_stops_at_a_stop_token_of_a_finished_block_and_costs_no_more(write):
    early, late = [7] * 12, [8] * 12
    early[3] = late[8] = STOP
    logits_fn, asked = scripted(early, late)
    numbered = torch.arange(2)[:, None].repeat(1, 5)  # row b's prompt is b, so that `scripted` knows the row
    generation = write(numbered, replace(CONFIG, max_new_tokens=18), logits_fn=logits_fn, stop_token_ids=[STOP])
    assert generation.texts() == [[7] * 3, [8] * 8]
    assert generation.is_stopped.tolist() == [True, True]
    assert asked == [[0, 1]] * 4 + [[1]] * 4
    assert generation.token_ids.shape == (2, 12), "both have stopped: no third block"


def test_without_a_stop_token_the_budget_ends_the_text_even_within_a_block(write):
    logits_fn, _ = scripted([7] * 16)
    config = replace(CONFIG, max_new_tokens=8)
    generation = write(torch.zeros(1, 5, dtype=torch.long), config, logits_fn=logits_fn, stop_token_ids=[STOP])
    assert generation.texts() == [[7] * 8]
    assert generation.is_stopped.tolist() == [False]
    assert generation.num_forwards == 4 + 2, "a cut block of 2 tokens needs no more than 2 steps"


def test_the_callback_sees_every_token_committed_once_with_its_confidence(write):
    seen, states = [], []

    def on_commit(commit):
        seen.append((commit.block, commit.step, commit.is_committed.sum().item()))
        states.append((commit.token_ids.clone(), commit.is_committed.clone()))
        assert (commit.confidence > 0).equal(commit.is_committed)

    generation = write(prompts(1), on_commit=on_commit)
    assert seen == [(b, s, n) for b in range(2) for s, n in enumerate([2, 2, 1, 1])]
    for token_ids, is_committed in states:
        full = torch.cat([prompts(1), generation.token_ids], dim=1)[:, : token_ids.shape[1]]
        assert token_ids[is_committed].equal(full[is_committed])
    assert states[0][0].eq(MASK).sum() == 4


def test_the_prompt_is_left_as_it_was(write):
    prompt = prompts()
    prompt[0, 2] = MASK
    before = prompt.clone()
    write(prompt)
    assert prompt.equal(before)


def test_an_empty_prompt_is_a_beginning(write):
    assert write(torch.zeros(1, 0, dtype=torch.long)).token_ids.shape == (1, 12)


def test_a_text_longer_than_the_model_knows_positions_for_is_refused(write):
    assert write(prompts(), limit=17).token_ids.shape == (2, 12)
    with pytest.raises(UserError, match=r"prompt has 5 tokens and generation.max_new_tokens is 12, .* 16 positions"):
        write(prompts(), limit=16)

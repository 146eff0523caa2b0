"""The bound and the exact score of an answer, against enumeration and against one row at a time."""

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.batch import Layout, TokenBatch
from lit_illada.scoring.candidates import Candidate
from lit_illada.scoring.conditional import bound_scores, exact_scores, num_masks
from lit_illada.scoring.mask_grid import MaskGrid

FEW = MaskGrid(num_draws=8)
PROMPT = [0, 2]


def ignore(num_tokens):
    pass


def published_estimate(model, prompt_ids, answer_ids, masks):
    """LLaDA's get_log_likelihood (its repository) for given masks: one row at a time, cross-entropy / (k/L), summed."""
    total = 0.0
    for is_masked in masks:
        ids = torch.tensor([prompt_ids + answer_ids])
        select = torch.tensor([[False] * len(prompt_ids) + list(is_masked)])
        noisy = ids.masked_fill(select, model.mask_token_id)
        scores = model.score(noisy, Layout.whole_rows(*ids.shape), select, ids[select])
        total += (scores.nll.double() / (sum(is_masked) / len(answer_ids))).sum().item()
    return -total / len(masks)


def test_the_enumerated_bound_of_exact_conditionals_equals_the_likelihood(ask, conditionals, answers):
    model = ask(conditionals)
    for one, score in zip(answers(PROMPT, 3), bound_scores(model, answers(PROMPT, 3), FEW, 64, ignore), strict=True):
        want = conditionals.log_prob(PROMPT + one.answer_ids) - conditionals.log_prob(PROMPT)
        assert score.value == pytest.approx(want, abs=1e-6)
        assert score.stderr == 0


def test_a_short_answer_is_scored_under_every_mask_once(ask, made_up):
    model = ask(made_up)
    (score,) = bound_scores(model, [Candidate.answering(PROMPT, [1, 0, 2])], FEW, 5, ignore)
    assert model.score.num_forwards == 7 == num_masks(3, FEW)
    want = 0.0
    for k in (1, 2, 3):
        masks = [[n in chosen for n in range(3)] for chosen in itertools.combinations(range(3), k)]
        want += published_estimate(model, PROMPT, [1, 0, 2], masks) / 3
    assert score.value == pytest.approx(want, abs=1e-6)


def test_the_bound_of_a_long_answer_equals_the_published_estimate(real):
    model = real()
    one = Candidate.answering([5, 6, 7], [3, 9, 4, 11, 2])
    (score,) = bound_scores(model, [one], FEW, 24, ignore)
    masks = FEW.masks_of_row(one.row_id, 5).tolist()
    assert score.value == pytest.approx(published_estimate(model, [5, 6, 7], [3, 9, 4, 11, 2], masks), rel=1e-5)


def test_k_is_systematic_over_1_to_the_length():
    counts = MaskGrid(num_draws=128).masks_of_row(12345, 32).sum(1)
    assert torch.bincount(counts, minlength=33).tolist() == [0] + [4] * 32


def test_the_bound_is_unbiased_and_its_standard_error_is_correct(ask, conditionals):
    """Over many seeds: the mean is the likelihood, the spread is what the standard error says, and not the wider spread
    of draws that were not stratified."""
    model = ask(conditionals)
    one = Candidate.answering([], [0, 1, 2, 0, 1])
    scores = [bound_scores(model, [one], MaskGrid(16, seed), 4096, ignore)[0] for seed in range(60)]
    spread = statistics.stdev(score.value for score in scores)
    result = math.sqrt(statistics.fmean(score.stderr**2 for score in scores))
    mean = statistics.fmean(score.value for score in scores)
    assert abs(mean - conditionals.log_prob(one.answer_ids)) < 3 * spread / math.sqrt(60)
    assert 0.75 < result / spread < 1.35


def test_scores_do_not_depend_on_the_batch(real):
    for model, by in ((real(), "bound"), (real(is_causal=True), "exact")):
        company = [Candidate.answering([5] * n, [2 + n, 7, 9, 4][: 1 + n % 4]) for n in range(6)]

        def scored(candidates, batch_tokens, model=model, by=by):
            if by == "bound":
                return bound_scores(model, candidates, FEW, batch_tokens, ignore)
            return exact_scores(model, candidates, batch_tokens, ignore)[0]

        alone = [scored([one], 1)[0] for one in company]
        for batch_tokens in (1, 20, 10_000):
            for one, other in zip(alone, scored(company, batch_tokens), strict=True):
                assert one.value == pytest.approx(other.value, rel=1e-5)
                assert one.num_tokens == other.num_tokens


def test_the_exact_score_equals_teacher_forcing_of_each_prefix(real):
    model = real(is_causal=True)
    prompt, answer = [5, 6, 7], [3, 9, 4, 11]
    want, written = 0.0, []
    for folder in range(len(answer)):
        prefix = torch.tensor([[1, *prompt, *answer[:folder]]])  # EOS stands before a document
        logits = model.logits(prefix, Layout.whole_rows(*prefix.shape), torch.ones_like(prefix, dtype=torch.bool))[-1]
        want += logits.log_softmax(0)[answer[folder]].item()
        written.append(logits.argmax().item())
    (score,), (is_greedy,) = exact_scores(model, [Candidate.answering(prompt, answer)], 64, ignore)
    assert score.value == pytest.approx(want, rel=1e-5)
    assert is_greedy == (written == answer)
    assert exact_scores(model, [Candidate.answering(prompt, written[:1])], 64, ignore)[1] == [True]


def test_forward_passes_respect_the_token_limit(real):
    seen = []
    candidates = [Candidate.answering([5] * n, [2, 7, 9, 4]) for n in range(9)]
    bound_scores(real(), candidates, FEW, 30, seen.append)
    assert max(seen) <= 30
    assert sum(seen) == sum(8 * len(one) for one in candidates), "nothing is padded"


@given(st.integers(1, 40), st.integers(2, 200), st.integers(0, 2**31))
def test_masks_of_a_row_equal_the_grids_masks(length, num_draws, row_id):
    grid = MaskGrid(num_draws, seed=3)
    masks = grid.masks_of_row(row_id, length)
    ids = torch.zeros(1, length, dtype=torch.long)
    batch = TokenBatch(
        ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([row_id]), Layout.whole_rows(1, length)
    )
    for draw in (0, num_draws - 1):
        assert masks[draw].equal(grid.masks(batch, draw)[0])


def by_blocks(prompt_ids, answer_ids, block_length):
    """A candidate per block of the answer, given the blocks before it."""
    starts = range(0, len(answer_ids), block_length)
    return [
        Candidate.answering(prompt_ids + answer_ids[:start], answer_ids[start : start + block_length])
        for start in starts
    ]


@pytest.mark.parametrize("block_length", [1, 2])
def test_the_bound_in_blocks_is_the_sum_of_the_blocks_bounds(real, block_length):
    model, answer = real(block_length=block_length), [3, 9, 4, 11, 2]
    grid = MaskGrid(1 if block_length == 1 else 400, block_length=block_length)
    (score,) = bound_scores(model, [Candidate.answering([5, 6, 7], answer)], grid, 512, ignore)
    parts = bound_scores(model, by_blocks([5, 6, 7], answer, block_length), grid, 512, ignore)
    assert all(part.stderr == 0 for part in parts)  # every mask of a block
    want = sum(part.value for part in parts)
    assert abs(score.value - want) <= max(3 * score.stderr, 1e-4)
    assert (score.stderr == 0) == (block_length == 1)

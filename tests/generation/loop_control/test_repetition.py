"""Penalties of a bidirectional sampler, against their definitions written out position by position."""

from itertools import pairwise

import pytest
import torch

from lit_illada.errors import UserError
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.logit_controls import Positions, TokenKinds
from lit_illada.generation.loop_control.repetition import DRY, Penalty, RepetitionControl

MASK, VOCABULARY, PROMPT = 0, 9, 3
NOTHING = torch.tensor([], dtype=torch.int64)


def scene(seed, rows=3, width=20):
    """Rows of few different tokens, about a third of the new ones masked, and logits for the masked."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 4, (rows, PROMPT + width), generator=generator)
    is_masked = torch.rand(rows, PROMPT + width, generator=generator) < 0.3
    is_masked[:, :PROMPT] = False
    ids[is_masked] = MASK
    row, column = is_masked.nonzero(as_tuple=True)
    logits = torch.randn(len(row), VOCABULARY, dtype=torch.float64, generator=generator) * 3
    return logits, Positions(ids, row, column, PROMPT, torch.arange(rows))


def penalty_of(logits, ids, column, penalty):
    """Hugging Face's RepetitionPenaltyLogitsProcessor, on the new tokens committed to the left."""
    seen = {token for token in ids[PROMPT:column] if token != MASK}
    return [(x / penalty if x > 0 else x * penalty) if v in seen else x for v, x in enumerate(logits)]


def dry_of(logits, ids, column, rule):
    """DRYLogitsProcessor of text-generation-webui, restated.

    The context ends at the position; masked tokens break a sequence.
    """
    input_ids, scores = ids[PROMPT:column], list(logits)
    if not input_ids or input_ids[-1] == MASK:
        return scores
    match_lengths = {}
    for i, token in enumerate(input_ids[:-1]):
        if token != input_ids[-1] or input_ids[i + 1] == MASK:
            continue
        match_length = 1
        while i - match_length >= 0:
            previous = input_ids[-(match_length + 1)]
            if input_ids[i - match_length] != previous or previous == MASK:
                break
            match_length += 1
        next_token = input_ids[i + 1]
        match_lengths[next_token] = max(match_length, match_lengths.get(next_token, 0))
    for token, match_length in match_lengths.items():
        if match_length >= rule.allowed_length:
            scores[token] -= rule.multiplier * rule.base ** (match_length - rule.allowed_length)
    return scores


@pytest.mark.parametrize("seed", range(5))
def test_the_penalty_is_that_of_the_committed_tokens_to_the_left(seed):
    logits, positions = scene(seed)
    after = RepetitionControl(Penalty(1.7), MASK, NOTHING)(logits.clone(), positions)
    for m, (row, column) in enumerate(zip(positions.rows.tolist(), positions.columns.tolist(), strict=True)):
        expected = penalty_of(logits[m].tolist(), positions.token_ids[row].tolist(), column, 1.7)
        torch.testing.assert_close(after[m].tolist(), expected)
    assert not after.equal(logits)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rule", [DRY(), DRY(1.5, 1.2, 1), DRY(0.8, 2.0, 4)])
def test_dry_equals_its_authors_implementation(seed, rule):
    logits, positions = scene(seed)
    after = RepetitionControl(rule, MASK, NOTHING)(logits.clone(), positions)
    for m, (row, column) in enumerate(zip(positions.rows.tolist(), positions.columns.tolist(), strict=True)):
        expected = dry_of(logits[m].tolist(), positions.token_ids[row].tolist(), column, rule)
        torch.testing.assert_close(after[m].tolist(), expected)


def test_dry_grows_with_the_length_of_the_repetition():
    ids = torch.tensor([[5, 5, 5, 1, 2, 3, 1, 2, 3, 1, 2, MASK]])
    positions = Positions(ids, torch.tensor([0]), torch.tensor([11]), PROMPT, torch.tensor([0]))
    after = DRY(multiplier=1.0, base=2.0, allowed_length=2)
    control = RepetitionControl(after, MASK, NOTHING)
    lowered = control(torch.zeros(1, VOCABULARY, dtype=torch.float64), positions)
    assert lowered[0].tolist() == [0, 0, 0, -(2.0**3), 0, 0, 0, 0, 0], "five tokens match, two are allowed"


@pytest.mark.parametrize("rule", [Penalty(2.0), DRY()])
def test_exempt_tokens_are_never_penalised(rule):
    logits, positions = scene(1)
    exempt = torch.tensor([1, 3])
    after = RepetitionControl(rule, MASK, exempt)(logits.clone(), positions)
    full = RepetitionControl(rule, MASK, NOTHING)(logits.clone(), positions)
    assert after[:, exempt].equal(logits[:, exempt])
    others = torch.tensor([v for v in range(VOCABULARY) if v not in exempt])
    assert after[:, others].equal(full[:, others])
    assert not full[:, exempt].equal(logits[:, exempt])


@pytest.mark.parametrize("rule", [Penalty(2.0), DRY()])
def test_tokens_to_the_right_and_in_the_prompt_are_not_penalised(rule):
    logits, positions = scene(2)
    control = RepetitionControl(rule, MASK, NOTHING)
    after = control(logits.clone(), positions)
    for m, (row, column) in enumerate(zip(positions.rows.tolist(), positions.columns.tolist(), strict=True)):
        ids = positions.token_ids[row].clone()
        ids[:PROMPT], ids[column + 1 :] = 7, 8
        separate = Positions(ids[None], torch.tensor([0]), torch.tensor([column]), PROMPT, torch.tensor([0]))
        torch.testing.assert_close(control(logits[m : m + 1].clone(), separate)[0], after[m])


@pytest.mark.parametrize("rule", [Penalty(1e6), DRY(1e6, allowed_length=1)])
def test_a_repeating_model_changes_its_token_unless_it_is_exempt(write, rule):
    def says_seven(ids, layout, select, *, cache, start):
        logits = torch.linspace(0, 1, 23, dtype=torch.float64).repeat(int(select.sum()), 1)
        logits[:, 7] = 9.0
        return logits

    prompt = [torch.tensor([7, 7])]
    config = GenerationConfig(max_new_tokens=6, block_length=6, num_steps=6, repetition=rule)
    words = write(prompt, config, logits_fn=says_seven).texts()[0]
    assert words[0] == 7, "the prompt is no repetition"
    units = words if isinstance(rule, Penalty) else list(pairwise(words))
    assert len(set(units)) == len(units)
    digits = write(prompt, config, logits_fn=says_seven, kinds=TokenKinds(unpenalised_ids=[7])).texts()[0]
    assert digits == [7] * len(digits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Penalty(1.0), "generation.repetition.penalty is 1.0: it must be above 1"),
        (lambda: DRY(multiplier=0.0), "multiplier is 0.0"),
        (lambda: DRY(base=0.5), "base is 0.5: it must be 1 or more"),
        (lambda: DRY(allowed_length=0), "allowed_length is 0: it must be 1 or more"),
    ],
)
def test_a_penalty_without_effect_is_rejected(make, message):
    with pytest.raises(UserError, match=message):
        make()

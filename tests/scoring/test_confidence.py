"""Chain-rule scores against the slow and obvious, and by the laws that tell a likelihood from a ranking score."""

import math

import pytest
import torch

from lit_illada.batch import Layout
from lit_illada.scoring.candidates import Candidate
from lit_illada.scoring.confidence import chain_rule_scores, greedy_answers
from lit_illada.scoring.config import ScoreRule

RULES = [ScoreRule.LEFT_TO_RIGHT, ScoreRule.CONFIDENCE_ORDER, ScoreRule.CONFIDENCE]
PROMPT = [0, 2]


def ignore(num_tokens):
    pass


def slow_score(model, prompt_ids, answer_ids, rule):
    """One answer, one token at a time, as the definition reads."""
    revealed, total, is_greedy = {}, 0.0, True
    while len(revealed) < len(answer_ids):
        ids = prompt_ids + [revealed.get(n, model.mask_token_id) for n in range(len(answer_ids))]
        row = torch.tensor([ids])
        logits = model.logits(row, Layout.whole_rows(*row.shape), torch.ones_like(row, dtype=torch.bool))
        log_probs = logits.double().log_softmax(-1)[len(prompt_ids) :]
        candidates = []
        for n in range(len(answer_ids)):
            if n not in revealed:
                true = log_probs[n, answer_ids[n]].item()
                words = log_probs[n].clone()
                words[model.mask_token_id] = -math.inf
                sureness = words.softmax(-1).max().item()  # among the words, as generation sees it
                key = {"left_to_right": -n, "confidence_order": sureness, "confidence": true}[rule]
                candidates.append((key, -n, true, words.argmax().item()))
        _, minus_n, true, chosen = max(candidates)
        revealed[-minus_n] = answer_ids[-minus_n]
        is_greedy &= chosen == answer_ids[-minus_n]
        total += true
    return total, is_greedy


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_equals_its_definition_in_mixed_batches(real, rule):
    model = real()
    groups = [
        [Candidate.answering([5, 6, 7], answer) for answer in ([3, 9, 4, 11, 2], [8], [12, 3])],
        [Candidate.answering([9], answer) for answer in ([4, 4, 4], [20, 21])],
    ]
    for batch_tokens in (1, 20, 10_000):
        scores = chain_rule_scores(model, groups, rule, batch_tokens, ignore)
        for group, result in zip(groups, scores, strict=True):
            for one, score in zip(group, result, strict=True):
                want, _ = slow_score(model, one.prompt_ids, one.answer_ids, rule)
                assert score.value == pytest.approx(want, rel=1e-5)
                assert (score.stderr, score.num_tokens) == (0, len(one.answer_ids))


@pytest.mark.parametrize("rule", RULES)
def test_exact_conditionals_give_the_likelihood_in_every_order(ask, conditionals, answers, rule):
    (scores,) = chain_rule_scores(ask(conditionals), [answers(PROMPT, 3)], rule, 4096, ignore)
    for one, score in zip(answers(PROMPT, 3), scores, strict=True):
        want = conditionals.log_prob(PROMPT + one.answer_ids) - conditionals.log_prob(PROMPT)
        assert score.value == pytest.approx(want, abs=1e-9)


def test_orders_that_ignore_the_answer_define_a_distribution_and_illadas_does_not(ask, made_up, answers):
    totals = {}
    for rule in RULES:
        (scores,) = chain_rule_scores(ask(made_up), [answers(PROMPT, 3)], rule, 4096, ignore)
        totals[rule] = sum(math.exp(score.value) for score in scores)
    assert totals["left_to_right"] == pytest.approx(1, abs=1e-9)
    assert totals["confidence_order"] == pytest.approx(1, abs=1e-9)
    assert totals["confidence"] != pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("rule", RULES)
def test_choices_of_a_question_cost_the_passes_of_the_longest(ask, made_up, rule):
    model = ask(made_up)
    choices = [Candidate.answering(PROMPT, answer) for answer in ([1], [0, 1, 2, 0], [2, 2], [0, 0, 1])]
    passes = []
    chain_rule_scores(model, [choices], rule, 1, passes.append)
    assert model.score.num_forwards == len(passes) == 4
    assert sum(passes) == (4 + 3 + 2 + 1) * 6, "a finished choice leaves the batch"


def test_questions_of_one_batch_share_passes(ask, made_up):
    groups = [[Candidate.answering(PROMPT, [n % 3, 1, 2][: 1 + n % 3]), Candidate.answering([], [0])] for n in range(9)]
    model = ask(made_up)
    chain_rule_scores(model, groups, ScoreRule.CONFIDENCE, 10_000, ignore)
    assert model.score.num_forwards == 3


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_is_greedy_when_the_model_would_generate_it(real, seed):
    model = real(seed=seed)
    prompts = [[5, 6, 7], [2, 3], [9]]
    written = []
    for prompt in prompts:
        ids = [0] * 4
        while 0 in ids:
            row = torch.tensor([prompt + ids])
            logits = model.logits(row, Layout.whole_rows(*row.shape), row == 0).double()
            logits[:, 0] = -math.inf
            best, tokens = logits.softmax(-1).max(-1)
            masked = [n for n in range(4) if ids[n] == 0]
            ids[masked[best.argmax()]] = tokens[best.argmax()].item()
        written.append(ids)
    right = [Candidate.answering(prompt, ids) for prompt, ids in zip(prompts, written, strict=True)]
    wrong = [
        Candidate.answering(prompt, [*ids[:-1], ids[-1] % 22 + 1]) for prompt, ids in zip(prompts, written, strict=True)
    ]
    wrong.append(Candidate.answering(prompts[0], written[0][:3]))
    assert greedy_answers(model, right, 10_000, ignore) == [True] * 3
    mixed = [one for pair in zip(wrong, right, strict=False) for one in pair] + wrong[3:]
    for one, is_greedy in zip(mixed, greedy_answers(model, mixed, 30, ignore), strict=True):
        assert is_greedy == slow_score(model, one.prompt_ids, one.answer_ids, "confidence_order")[1]


def test_a_wrong_first_token_costs_one_pass(ask, conditionals):
    model = ask(conditionals)
    first = max(range(3), key=lambda v: conditionals.marginals((0, 3))[1, v])
    assert greedy_answers(model, [Candidate.answering([0], [(first + 1) % 3])], 64, ignore) == [False]
    before = model.score.num_forwards
    worst = min(
        [(a, b, c) for a in range(3) for b in range(3) for c in range(3)], key=lambda y: conditionals.log_prob([0, *y])
    )
    assert greedy_answers(model, [Candidate.answering([0], list(worst))], 64, ignore) == [False]
    assert model.score.num_forwards - before < 3


@pytest.mark.parametrize("rule", RULES)
def test_a_model_in_blocks_reveals_one_block_after_the_other(real, rule):
    model, prompt, answer = real(block_length=2), [5, 6, 7], [3, 9, 4, 11, 2]
    parts = [Candidate.answering(prompt + answer[:start], answer[start : start + 2]) for start in (0, 2, 4)]
    groups = [[Candidate.answering(prompt, answer), Candidate.answering(prompt, [4])], parts]
    (whole, _), blocks = chain_rule_scores(model, groups, rule, 10_000, ignore)
    assert whole.value == pytest.approx(sum(block.value for block in blocks), rel=1e-5)
    assert greedy_answers(model, groups[0][:1], 100, ignore) == [all(greedy_answers(model, parts, 100, ignore))]

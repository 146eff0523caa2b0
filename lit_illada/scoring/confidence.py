"""Chain-rule scores of an answer, whose tokens are revealed one per forward pass.

left_to_right and confidence_order choose the next position without using the true token, so each defines a
distribution: exp(score) sums to 1 over all answers of one length. confidence, iLLaDA's rule (arXiv 2606.25331), reveals
the position whose *true* token is most probable; its sum ranks answers but is not a likelihood.

A model trained in blocks reveals one block after the other.

The answers of a batch advance together, so a batch costs as many passes as its longest answer has tokens.

Shapes: B rows, T tokens per row, M selected tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_illada.batch import TokenBatch
from lit_illada.objective.blocks import in_blocks
from lit_illada.scoring.candidates import Candidate, Score, batched_groups, padded_batch, padded_layout
from lit_illada.scoring.config import ScoreRule
from lit_illada.scoring.model import OnForward, ScoringModel

Groups = Sequence[Sequence[Candidate]]


def chain_rule_scores(
    model: ScoringModel, groups: Groups, rule: ScoreRule, batch_tokens: int, on_forward: OnForward
) -> list[list[Score]]:
    """Scores in nats by left_to_right, confidence_order or confidence, by group. Batches never split a group."""
    scores: list[list[Score]] = [[] for _ in groups]
    for numbers in batched_groups(groups, batch_tokens):
        answers = [answer for number in numbers for answer in groups[number]]
        sums, _ = _reveal(model, answers, rule, on_forward, stops_at_wrong=False)
        answer_scores = iter(
            [Score(one, 0.0, len(answer.answer_ids)) for one, answer in zip(sums, answers, strict=True)]
        )
        for number in numbers:
            scores[number] = [next(answer_scores) for _ in groups[number]]
    return scores


def greedy_answers(
    model: ScoringModel, candidates: Sequence[Candidate], batch_tokens: int, on_forward: OnForward
) -> list[bool]:
    """Whether each answer is the greedy continuation, at one token per step in order of confidence (as in LLaDA).

    An answer is dropped at its first wrong token; most answers then cost a single pass.
    """
    is_greedy = [False] * len(candidates)
    for numbers in batched_groups([[candidate] for candidate in candidates], batch_tokens):
        answers = [candidates[number] for number in numbers]
        _, are_right = _reveal(model, answers, ScoreRule.CONFIDENCE_ORDER, on_forward, stops_at_wrong=True)
        for number, is_right in zip(numbers, are_right, strict=True):
            is_greedy[number] = is_right
    return is_greedy


@torch.no_grad()
def _reveal(
    model: ScoringModel, answers: Sequence[Candidate], rule: ScoreRule, on_forward: OnForward, *, stops_at_wrong: bool
) -> tuple[list[float], list[bool]]:
    """Reveals all answers; returns each one's summed log-probability, and whether every token was the model's argmax.

    stops_at_wrong: drop an answer at its first other token, with a partial sum.
    """
    batch = padded_batch(answers, model.mask_token_id).to(model.device)
    is_masked_BT = batch.is_maskable.clone()
    log_prob_B = torch.zeros(len(answers), dtype=torch.float64, device=model.device)
    is_right_B = torch.ones(len(answers), dtype=torch.bool, device=model.device)
    row_length = batch.input_ids.shape[1]
    active = list(range(len(answers)))
    for step in range(max(len(answer.answer_ids) for answer in answers)):
        active = [row for row in active if len(answers[row].answer_ids) > step]
        if stops_at_wrong and step > 0:
            is_right = is_right_B.tolist()
            active = [row for row in active if is_right[row]]
        if not active:
            break
        rows = torch.tensor(active, device=model.device)
        layout = padded_layout([len(answers[row]) for row in active], row_length).to(model.device)
        part = TokenBatch(batch.input_ids[rows], batch.is_maskable[rows], batch.row_ids[rows], layout)
        part = in_blocks(part, model.block_length)
        position_B1, nll_B, is_correct_B = _next_token(model, part, is_masked_BT[rows], rule)
        log_prob_B[rows] -= nll_B
        is_right_B[rows] &= is_correct_B
        is_masked_BT[rows] = is_masked_BT[rows].scatter(1, position_B1, False)
        on_forward(part.input_ids.numel())
    return log_prob_B.tolist(), is_right_B.tolist()


def _next_token(
    model: ScoringModel, part: TokenBatch, is_masked_BT: Tensor, rule: ScoreRule
) -> tuple[Tensor, Tensor, Tensor]:
    """The next position of each row, (B, 1); its true token's −log p, (B,); and whether that token is the argmax."""
    noisy_BT = part.input_ids.masked_fill(is_masked_BT, model.mask_token_id)
    select_BT = is_masked_BT
    if (blocks_BT := part.layout.blocks) is not None:
        open_BT = blocks_BT.masked_fill(~is_masked_BT, blocks_BT.shape[1])
        select_BT = is_masked_BT & (blocks_BT == open_BT.amin(1, keepdim=True))
    if rule is ScoreRule.LEFT_TO_RIGHT:
        select_BT = is_masked_BT & (is_masked_BT.cumsum(1) == 1)
    targets_M = part.input_ids[select_BT]
    if rule is ScoreRule.CONFIDENCE_ORDER:
        # the confidence is that of the best real token: the sampler never proposes the mask token either
        log_prob_MV = _log_softmax(model.logits(noisy_BT, part.layout, select_BT))
        nll_M = -log_prob_MV.gather(1, targets_M[:, None])[:, 0]
        log_prob_MV[:, model.mask_token_id] = -torch.inf
        confidence_M, choice_M = log_prob_MV.log_softmax(-1).max(-1)
        is_correct_M = choice_M == targets_M
    else:
        scores = model.score(noisy_BT, part.layout, select_BT, targets_M)
        nll_M, is_correct_M, confidence_M = scores.nll, scores.is_correct, -scores.nll
    position_B1 = _spread(confidence_M, select_BT, -torch.inf).argmax(1, keepdim=True)
    nll_B = _spread(nll_M.double(), select_BT, 0.0).gather(1, position_B1)[:, 0]
    return position_B1, nll_B, _spread(is_correct_M, select_BT, False).gather(1, position_B1)[:, 0]


def _log_softmax(logits_MV: Tensor) -> Tensor:
    """In float32, or in float64 for float64 logits."""
    return logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32)).log_softmax(-1)


def _spread(values_M: Tensor, select_BT: Tensor, elsewhere: float | bool) -> Tensor:
    """(B, T): the values at their selected positions, `elsewhere` at all others."""
    values_BT = torch.full(select_BT.shape, elsewhere, dtype=values_M.dtype, device=values_M.device)
    return values_BT.masked_scatter(select_BT, values_M)

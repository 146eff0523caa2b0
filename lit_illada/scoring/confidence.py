"""How probable is an answer, told one token at a time? Chain-rule sums over an order in which its tokens are revealed.

left_to_right and confidence_order choose the next place without looking at the true token; so each is a distribution:
exp(score) sums to 1 over all answers of a length. confidence, iLLaDA's rule (arXiv 2606.25331), reveals where the
*true* token is the most probable. Its sum ranks answers; it is no likelihood.

All answers of a batch advance together: it costs as many forward passes as its longest answer has tokens.

Shapes: B rows, T tokens a row, M selected tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_illada.batch import TokenBatch
from lit_illada.scoring.candidates import Candidate, Score, batched_groups, padded_batch, padded_layout
from lit_illada.scoring.config import ScoreRule
from lit_illada.scoring.model import OnForward, ScoringModel

Groups = Sequence[Sequence[Candidate]]


def chain_rule_scores(
    model: ScoringModel, groups: Groups, rule: ScoreRule, batch_tokens: int, on_forward: OnForward
) -> list[list[Score]]:
    """Scores by left_to_right, confidence_order or confidence. A group is never split over batches."""
    scores: list[list[Score]] = [[] for _ in groups]
    for numbers in batched_groups(groups, batch_tokens):
        answers = [answer for number in numbers for answer in groups[number]]
        sums, _ = _reveal(model, answers, rule, on_forward, stops_at_wrong=False)
        told = iter([Score(one, 0.0, len(answer.answer_ids)) for one, answer in zip(sums, answers, strict=True)])
        for number in numbers:
            scores[number] = [next(told) for _ in groups[number]]
    return scores


def greedy_answers(
    model: ScoringModel, candidates: Sequence[Candidate], batch_tokens: int, on_forward: OnForward
) -> list[bool]:
    """Whether each answer is what the model writes by itself, one token a step, the surest first (as LLaDA asks it).

    An answer is left at its first wrong token. Most are wrong at once and cost one pass.
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
    """Each answer's sum of log-probabilities, and whether every token was the model's own choice there. With
    stops_at_wrong an answer with another token is left there, its sum unfinished."""
    batch = padded_batch(answers, model.mask_token_id).to(model.device)
    is_masked_BT = batch.is_maskable.clone()
    log_prob_B = torch.zeros(len(answers), dtype=torch.float64, device=model.device)
    is_right_B = torch.ones(len(answers), dtype=torch.bool, device=model.device)
    row_length = batch.input_ids.shape[1]
    at_work = list(range(len(answers)))
    for step in range(max(len(answer.answer_ids) for answer in answers)):
        at_work = [row for row in at_work if len(answers[row].answer_ids) > step]
        if stops_at_wrong and step > 0:
            is_right = is_right_B.tolist()
            at_work = [row for row in at_work if is_right[row]]
        if not at_work:
            break
        rows = torch.tensor(at_work, device=model.device)
        layout = padded_layout([len(answers[row]) for row in at_work], row_length).to(model.device)
        part = TokenBatch(batch.input_ids[rows], batch.is_maskable[rows], batch.row_ids[rows], layout)
        place_B1, nll_B, is_correct_B = _next_token(model, part, is_masked_BT[rows], rule)
        log_prob_B[rows] -= nll_B
        is_right_B[rows] &= is_correct_B
        is_masked_BT[rows] = is_masked_BT[rows].scatter(1, place_B1, False)
        on_forward(part.input_ids.numel())
    return log_prob_B.tolist(), is_right_B.tolist()


def _next_token(
    model: ScoringModel, part: TokenBatch, is_masked_BT: Tensor, rule: ScoreRule
) -> tuple[Tensor, Tensor, Tensor]:
    """Where each row reveals next, (B, 1), its true token's −log p there, (B,), and whether it is the argmax."""
    noisy_BT = part.input_ids.masked_fill(is_masked_BT, model.mask_token_id)
    select_BT = is_masked_BT
    if rule is ScoreRule.LEFT_TO_RIGHT:
        select_BT = is_masked_BT & (is_masked_BT.cumsum(1) == 1)
    targets_M = part.input_ids[select_BT]
    if rule is ScoreRule.CONFIDENCE_ORDER:
        # the model's choices, in which it is more or less sure, are among the real tokens
        log_prob_MV = _log_softmax(model.logits(noisy_BT, part.layout, select_BT))
        nll_M = -log_prob_MV.gather(1, targets_M[:, None])[:, 0]
        log_prob_MV[:, model.mask_token_id] = -torch.inf
        sureness_M, choice_M = log_prob_MV.log_softmax(-1).max(-1)
        is_correct_M = choice_M == targets_M
    else:
        told = model.score(noisy_BT, part.layout, select_BT, targets_M)
        nll_M, is_correct_M, sureness_M = told.nll, told.is_correct, -told.nll
    place_B1 = _spread(sureness_M, select_BT, -torch.inf).argmax(1, keepdim=True)
    nll_B = _spread(nll_M.double(), select_BT, 0.0).gather(1, place_B1)[:, 0]
    return place_B1, nll_B, _spread(is_correct_M, select_BT, False).gather(1, place_B1)[:, 0]


def _log_softmax(logits_MV: Tensor) -> Tensor:
    """In float32, or float64 where the logits are."""
    return logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32)).log_softmax(-1)


def _spread(values_M: Tensor, select_BT: Tensor, elsewhere: float | bool) -> Tensor:
    """(B, T): the selected tokens' values at their places."""
    whole_BT = torch.full(select_BT.shape, elsewhere, dtype=values_M.dtype, device=values_M.device)
    return whole_BT.masked_scatter(select_BT, values_M)

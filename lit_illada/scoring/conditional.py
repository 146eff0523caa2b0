"""log p(answer | prompt): a Monte-Carlo bound for a diffusion model, exact for a causal model.

The bound on −log p is E_k[(L/k)·S], k uniform on 1…L, S the cross-entropy summed over k masked tokens of the answer
with the prompt visible (LLaDA, arXiv 2502.09992, algorithm 3). As in LLaDA, k is systematic over 1…L and the positions
are random. An answer with no more possible masks than draws is scored under every mask, which makes the bound exact.
A model trained in blocks is scored by its own bound, the sum over the answer's blocks.

Shapes: B rows, T tokens per row, D draws, L tokens of the answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_illada.objective.autoregressive import shift_right
from lit_illada.objective.blocks import in_blocks
from lit_illada.scoring.candidates import Candidate, Score, batched_groups, padded_batch
from lit_illada.scoring.mask_grid import MaskGrid, mask_batch, score_rows
from lit_illada.scoring.model import OnForward, ScoringModel


@torch.no_grad()
def bound_scores(
    model: ScoringModel, candidates: Sequence[Candidate], grid: MaskGrid, batch_tokens: int, on_forward: OnForward
) -> list[Score]:
    """A lower bound of each candidate's log-likelihood, in nats."""
    nats_D = [torch.zeros(num_masks(len(c.answer_ids), grid), dtype=torch.float64) for c in candidates]
    for pieces in _row_batches(candidates, grid, batch_tokens):
        rows = [candidates[piece.number] for piece in pieces for _ in piece.is_masked]
        batch = in_blocks(padded_batch(rows, model.mask_token_id), grid.block_length)
        is_masked_BT = torch.zeros_like(batch.is_maskable)
        is_masked_BT[batch.is_maskable] = torch.cat([piece.is_masked.flatten() for piece in pieces])
        noisy = mask_batch(batch.to(model.device), is_masked_BT.to(model.device), model.mask_token_id)
        nats_B = score_rows(model.score, noisy).nll.cpu() * batch.is_maskable.sum(1)
        for piece, nats in zip(pieces, nats_B.split([len(piece.is_masked) for piece in pieces]), strict=True):
            nats_D[piece.number][piece.first : piece.first + len(nats)] = nats
        on_forward(batch.input_ids.numel())
    return [_summed(candidate, nats, grid) for candidate, nats in zip(candidates, nats_D, strict=True)]


def num_masks(length: int, grid: MaskGrid) -> int:
    """Number of masks under which an answer of `length` tokens is scored."""
    return 2**length - 1 if _is_enumerated(length, grid) else grid.num_draws


@torch.no_grad()
def exact_scores(
    model: ScoringModel, candidates: Sequence[Candidate], batch_tokens: int, on_forward: OnForward
) -> tuple[list[Score], list[bool]]:
    """Log-likelihoods under a causal model in nats, and whether each answer is the greedy continuation."""
    scores: dict[int, Score] = {}
    is_greedy: dict[int, bool] = {}
    for numbers in batched_groups([[candidate] for candidate in candidates], batch_tokens):
        batch = padded_batch([candidates[number] for number in numbers], model.eos_token_id)
        shifted = shift_right(batch.to(model.device), model.eos_token_id)
        token_scores = model.score(shifted.noisy_ids, shifted.layout, shifted.is_masked, shifted.targets)
        nats_B = shifted.spread(token_scores.nll).double().sum(1).tolist()
        num_correct_B = shifted.spread(token_scores.is_correct).sum(1).tolist()
        for number, nats, num_correct in zip(numbers, nats_B, num_correct_B, strict=True):
            length = len(candidates[number].answer_ids)
            scores[number] = Score(-nats, 0.0, length)
            is_greedy[number] = num_correct == length
        on_forward(batch.input_ids.numel())
    order = range(len(candidates))
    return [scores[number] for number in order], [is_greedy[number] for number in order]


@dataclass(frozen=True, eq=False)
class _Piece:
    """Consecutive draws of one candidate."""

    number: int  # index of the candidate
    first: int  # index of the first draw
    is_masked: Tensor  # (D, L) bool


def _row_batches(candidates: Sequence[Candidate], grid: MaskGrid, batch_tokens: int) -> Iterator[list[_Piece]]:
    """All draws of all candidates in batches of at most `batch_tokens` tokens, but at least one row.

    The rows of a batch have equal length: without padding, attention needs no mask, which is slow in SDPA on a CPU.
    """
    batch: list[_Piece] = []
    free_rows = row_length = 0
    for number in sorted(range(len(candidates)), key=lambda number: -len(candidates[number])):
        is_masked_DL = _masks(candidates[number], grid)
        first = 0
        while first < len(is_masked_DL):
            if free_rows == 0 or row_length != len(candidates[number]):
                if batch:
                    yield batch
                row_length = len(candidates[number])
                batch, free_rows = [], max(1, batch_tokens // row_length)
            batch.append(_Piece(number, first, is_masked_DL[first : first + free_rows]))
            num_rows = len(batch[-1].is_masked)
            first, free_rows = first + num_rows, free_rows - num_rows
    if batch:
        yield batch


def _is_enumerated(length: int, grid: MaskGrid) -> bool:
    is_one_block = grid.block_length is None or length <= grid.block_length
    return is_one_block and 2**length - 1 <= grid.num_draws


def _masks(candidate: Candidate, grid: MaskGrid) -> Tensor:
    """(D, L) bool: every non-empty mask of a short answer, or the grid's draws."""
    length = len(candidate.answer_ids)
    if _is_enumerated(length, grid):
        numbers_D = torch.arange(1, 2**length)
        return (numbers_D[:, None] >> torch.arange(length)) & 1 == 1
    return grid.masks_of_row(candidate.row_id, length)


def _summed(candidate: Candidate, nats_D: Tensor, grid: MaskGrid) -> Score:
    """The negative mean of (L/k)·S over the draws, with its standard error.

    The draws are stratified over k. The error is therefore estimated from differences of neighbouring draws, whose k is
    equal or adjacent; the variance of all draws would include the variance that stratification removes.
    """
    length = len(candidate.answer_ids)
    if len(nats_D) == 1:  # blocks of one token have one mask
        return Score(-nats_D.item(), 0.0, length)
    if not _is_enumerated(length, grid):
        variance = nats_D.diff().square().mean() / 2
        return Score(-nats_D.mean().item(), (variance / len(nats_D)).sqrt().item(), length)
    # each k has weight 1/L, divided among all masks of k tokens
    k_D = _masks(candidate, grid).sum(1)
    num_with_k_D = F.one_hot(k_D).sum(0)[k_D]
    return Score(-(nats_D / (length * num_with_k_D)).sum().item(), 0.0, length)

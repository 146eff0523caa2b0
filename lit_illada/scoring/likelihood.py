"""How well does a model know held-out text? The yardstick that every arm is ranked by, whatever objective trained it.

For a masked-diffusion model the bound on −log p(x) is E_k[(L/k)·S], k uniform on 1…L, S the cross-entropy summed over
k masked tokens (LLaDA, arXiv 2502.09992); a token of it is S/k, the mean over the masked ones. The masks are a
fixed grid, so that two models are told apart on the same questions: draw d of D takes k from the d-th of D equal
strata, and the rows step through a stratum by the golden ratio, so the grid is even over k for every number of rows.
For a causal model the likelihood is exact, on the same tokens.

Nothing here reads an objective's config. Shapes: B rows, T tokens, M masked tokens, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_illada.batch import Layout, TokenBatch, TokenScores
from lit_illada.objective.autoregressive import shift_right
from lit_illada.objective.loss import NUM_RATIO_BINS, NoisyBatch, RatioBins
from lit_illada.objective.masking import exactly_k, num_masked
from lit_illada.objective.noise import Purpose, golden_steps, random_bits, uniform

ScoreFn = Callable[[Tensor, Layout, Tensor, Tensor], TokenScores]
"""(noisy_ids (B, T), layout, select (B, T) bool, targets (M,)) -> scores of the M targets. The model itself is one."""


@dataclass(frozen=True)
class MaskGrid:
    """The fixed masks: `num_draws` of them a row, functions of (seed, row id, draw) alone."""

    num_draws: int = 8
    seed: int = 0

    def masks(self, batch: TokenBatch, draw: int) -> Tensor:
        """(B, T) bool: k of the L maskable tokens of each row, k from stratum `draw`; row_ids number the rows."""
        assert 0 <= draw < self.num_draws
        ids = batch.row_ids
        offset_B = random_bits(self.seed, Purpose.YARDSTICK_RATIO, torch.zeros_like(ids))
        u_B = (draw + golden_steps(offset_B, ids)) / self.num_draws
        positions_T = torch.arange(batch.input_ids.shape[1], device=ids.device)
        noise_BT = uniform(self.seed, Purpose.YARDSTICK_MASK, ids * self.num_draws + draw, positions_T)
        return exactly_k(num_masked(u_B, batch.is_maskable.sum(1)), noise_BT, batch.is_maskable)

    def masks_of_row(self, row_id: int, length: int) -> Tensor:
        """(num_draws, length) bool: all the draws of one row of which every token is maskable."""
        draws_D = torch.arange(self.num_draws)
        ids_D = torch.full_like(draws_D, row_id)
        offset_D = random_bits(self.seed, Purpose.YARDSTICK_RATIO, torch.zeros_like(draws_D))
        u_D = (draws_D + golden_steps(offset_D, ids_D)) / self.num_draws
        noise_DT = uniform(self.seed, Purpose.YARDSTICK_MASK, ids_D * self.num_draws + draws_D, torch.arange(length))
        is_maskable_DT = torch.ones(self.num_draws, length, dtype=torch.bool)
        return exactly_k(num_masked(u_D, is_maskable_DT.sum(1)), noise_DT, is_maskable_DT)


@dataclass(frozen=True, eq=False)
class RowScores:
    """nll: (B,) float64, nats a token of the row. num_tokens: (B,) int64, maskable ones; a row of 0 is left out."""

    nll: Tensor
    num_tokens: Tensor
    bins: RatioBins


@torch.no_grad()
def nll_bound(score: ScoreFn, batch: TokenBatch, grid: MaskGrid, mask_token_id: int) -> RowScores:
    """The bound of each row, averaged over the grid's draws."""
    noisy = [mask_batch(batch, grid.masks(batch, draw), mask_token_id) for draw in range(grid.num_draws)]
    scored = [score_rows(score, one) for one in noisy]
    bins = scored[0].bins
    for one in scored[1:]:
        bins = bins + one.bins
    return RowScores(torch.stack([one.nll for one in scored]).mean(0), scored[0].num_tokens, bins)


@torch.no_grad()
def nll(score: ScoreFn, batch: TokenBatch, eos_token_id: int) -> RowScores:
    """The exact −log p of each row under a causal model, in nats a token, on the tokens that the bound counts."""
    return score_rows(score, shift_right(batch, eos_token_id))


def mask_batch(batch: TokenBatch, is_masked_BT: Tensor, mask_token_id: int) -> NoisyBatch:
    """The batch with exactly these tokens masked; its ratio is k/L."""
    mask_ratio_B = is_masked_BT.sum(1) / batch.is_maskable.sum(1).clamp(min=1).double()
    return NoisyBatch(
        noisy_ids=batch.input_ids.masked_fill(is_masked_BT, mask_token_id),
        layout=batch.layout,
        is_masked=is_masked_BT,
        targets=batch.input_ids[is_masked_BT],
        is_maskable=batch.is_maskable,
        mask_ratio=mask_ratio_B,
        density=torch.ones_like(mask_ratio_B),
    )


def score_rows(score: ScoreFn, noisy: NoisyBatch) -> RowScores:
    """The mean cross-entropy over each row's masked tokens: S/k = (L/k)·S/L."""
    scores = score(noisy.noisy_ids, noisy.layout, noisy.is_masked, noisy.targets)
    nll_B = noisy.spread(scores.nll).double().sum(1) / noisy.is_masked.sum(1).clamp(min=1)
    return RowScores(nll_B, noisy.is_maskable.sum(1), RatioBins.of(scores, noisy))


class Likelihood(Metric):
    """Adds rows up, on any number of ranks.

    compute() gives, as float64 tensors: `nll_bound` (nats a token; exact for a causal model), `nll_bound_stderr` (its
    standard error; it treats rows as independent, though a long document spans several, so it is a lower estimate; of
    a single row it is NaN), `bits_per_byte` (only with `bytes_per_token`), and by mask-ratio bin,
    (10,) and NaN where nothing fell: `cross_entropy_by_ratio`, `accuracy_by_ratio`.

    bytes_per_token: (V,) how many bytes of text each token stands for, 0 for special ones; None if unknown.
    """

    full_state_update = False
    # Sums over rows of L tokens and x nats a token:
    row_sums: Tensor  # 1, L, L·x, L², L²·x, L²·x²
    num_bytes: Tensor
    bin_sums: Tensor  # (3, 10): nll, num_correct, num_masked

    def __init__(self, bytes_per_token: Tensor | None = None) -> None:
        super().__init__()
        self.bytes_per_token = bytes_per_token
        self.add_state("row_sums", torch.zeros(6, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_bytes", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("bin_sums", torch.zeros(3, NUM_RATIO_BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, rows: RowScores, batch: TokenBatch) -> None:
        """rows: the scores of `batch`."""
        x, length = rows.nll, rows.num_tokens.double()
        self.row_sums += torch.stack(
            [(length > 0).double(), length, length * x, length**2, length**2 * x, (length * x) ** 2]
        ).sum(1)
        self.bin_sums += torch.stack([rows.bins.nll, rows.bins.num_correct, rows.bins.num_masked])
        if self.bytes_per_token is not None:
            table_V = self.bytes_per_token.to(batch.input_ids.device)
            self.num_bytes += (table_V[batch.input_ids] * batch.is_maskable).sum()

    def compute(self) -> dict[str, Tensor]:
        num_rows, tokens, nats, square_tokens, cross, square_nats = self.row_sums
        mean = nats / tokens
        # The error of a ratio of sums: residuals L·(x − mean) of the rows, after Taylor.
        residuals = (square_nats - 2 * mean * cross + mean**2 * square_tokens).clamp(min=0)
        stderr = (num_rows / (num_rows - 1) * residuals).sqrt() / tokens
        nll_10, num_correct_10, num_masked_10 = self.bin_sums
        result = {
            "nll_bound": mean,
            "nll_bound_stderr": stderr,
            "cross_entropy_by_ratio": nll_10 / num_masked_10,
            "accuracy_by_ratio": num_correct_10 / num_masked_10,
        }
        if self.bytes_per_token is not None:
            result["bits_per_byte"] = nats / (math.log(2) * self.num_bytes)
        return result

"""The validation metric: a bound on the negative log-likelihood of held-out text, whatever objective trained the model.

For a masked-diffusion model the bound on −log p(x) is E_k[(L/k)·S], k uniform on 1…L, S the cross-entropy summed over
k masked tokens (LLaDA, arXiv 2502.09992); per token it is S/k, the mean over the masked ones. The masks are a fixed
grid (`mask_grid.py`), so that two models are compared on the same inputs. For a causal model the likelihood is exact,
on the same tokens.

For block diffusion the bound is the sum over the blocks of each block's bound given the clean blocks before it (BD3-LM,
arXiv 2503.09573). With blocks of one token it is the exact likelihood.

Values of two runs are comparable only on the same rows and masks: the same validation documents, row length, number of
rows and draws, and document isolation.

This module depends on no objective's config. Shapes: B rows, T tokens, V vocabulary.
"""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_illada.batch import TokenBatch
from lit_illada.objective.autoregressive import shift_right
from lit_illada.objective.blocks import in_blocks
from lit_illada.objective.loss import NUM_RATIO_BINS, ScoreFn
from lit_illada.scoring.mask_grid import MaskGrid, RowScores, mask_batch, score_rows

# Documents are summed in cells of a fixed number, so that ranks add up whatever documents they saw; beyond it several
# documents share a cell, which keeps the standard error right on average.
_NUM_CELLS = 2**16


@torch.no_grad()
def nll_bound(score: ScoreFn, batch: TokenBatch, grid: MaskGrid, mask_token_id: int) -> RowScores:
    """The bound of each row, averaged over the grid's draws."""
    batch = in_blocks(batch, grid.block_length)
    noisy = [mask_batch(batch, grid.masks(batch, draw), mask_token_id) for draw in range(grid.num_draws)]
    scored = [score_rows(score, one) for one in noisy]
    bins = scored[0].bins
    for one in scored[1:]:
        bins = bins + one.bins
    nll_B = torch.stack([one.nll for one in scored]).mean(0)
    weight_BT = torch.stack([one.weight for one in scored]).mean(0)
    weighted_nll_BT = torch.stack([one.weighted_nll for one in scored]).mean(0)
    return RowScores(nll_B, scored[0].num_tokens, weight_BT, weighted_nll_BT, bins)


@torch.no_grad()
def nll(score: ScoreFn, batch: TokenBatch, eos_token_id: int) -> RowScores:
    """The exact −log p of each row under a causal model, in nats/token, on the tokens that the bound counts."""
    return score_rows(score, shift_right(batch, eos_token_id))


class Likelihood(Metric):
    """Likelihood of a validation set, accumulated over rows and documents on any number of ranks.

    compute() gives, as float64 tensors: `nll_bound` (nats/token; exact for a causal model), `nll_bound_stderr`,
    `num_documents`, `bits_per_byte` (only with `bytes_per_token`), and by mask-ratio bin, (10,) with NaN for an empty
    bin: `cross_entropy_by_ratio`, `accuracy_by_ratio`.

    The standard error is clustered by document, since tokens of one document are correlated, whether it shares a row
    with others or spans several rows. The bound is m = Σ w·x / Σ w over tokens with cross-entropy x and weight w (L/k
    where masked); with the residuals r_c = Σ_{i in c} w_i (x_i − m) of C documents,

        stderr² = C/(C − 1) · Σ_c r_c² / (Σ w)²

    (linearised ratio estimator; NaN for a single document). It treats the documents as a random sample, and conditions
    on the trained model. A batch without document_ids counts each row as a document.

    bytes_per_token: (V,) bytes of text per token, 0 for special tokens; None if unknown.
    """

    full_state_update = False
    row_sums: Tensor  # (3,): rows, their tokens L, L·x with x nats/token
    document_sums: Tensor  # (2, _NUM_CELLS): weighted nll, weight
    num_bytes: Tensor
    bin_sums: Tensor  # (3, 10): nll, num_correct, num_masked

    def __init__(self, bytes_per_token: Tensor | None = None) -> None:
        super().__init__()
        self.bytes_per_token = bytes_per_token
        self.add_state("row_sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("document_sums", torch.zeros(2, _NUM_CELLS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_bytes", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("bin_sums", torch.zeros(3, NUM_RATIO_BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, rows: RowScores, batch: TokenBatch) -> None:
        """Adds a batch. rows: the scores of `batch`."""
        x, length = rows.nll, rows.num_tokens.double()
        self.row_sums += torch.stack([(length > 0).double(), length, length * x]).sum(1)
        self.document_sums += torch.stack([_by_document(part, batch) for part in (rows.weighted_nll, rows.weight)])
        self.bin_sums += torch.stack([rows.bins.nll, rows.bins.num_correct, rows.bins.num_masked])
        if self.bytes_per_token is not None:
            table_V = self.bytes_per_token.to(batch.input_ids.device)
            self.num_bytes += (table_V[batch.input_ids] * batch.is_maskable).sum()

    def compute(self) -> dict[str, Tensor]:
        _, tokens, nats = self.row_sums
        mean = nats / tokens
        nll_C, weight_C = self.document_sums
        num_documents = (weight_C > 0).sum().double()
        residual_C = nll_C - mean * weight_C
        stderr = (num_documents / (num_documents - 1) * residual_C.square().sum()).sqrt() / tokens
        nll_10, num_correct_10, num_masked_10 = self.bin_sums
        result = {
            "nll_bound": mean,
            "nll_bound_stderr": stderr,
            "num_documents": num_documents,
            "cross_entropy_by_ratio": nll_10 / num_masked_10,
            "accuracy_by_ratio": num_correct_10 / num_masked_10,
        }
        if self.bytes_per_token is not None:
            result["bits_per_byte"] = nats / (math.log(2) * self.num_bytes)
        return result


def _by_document(values_BT: Tensor, batch: TokenBatch) -> Tensor:
    """(_NUM_CELLS,) float64: sums of the values by document."""
    ids_BT = batch.row_ids[:, None].expand_as(values_BT) if batch.document_ids is None else batch.document_ids
    # on the CPU, where the order of the additions is fixed
    cells, values = (ids_BT % _NUM_CELLS).flatten().cpu(), values_BT.flatten().cpu()
    return torch.bincount(cells, weights=values, minlength=_NUM_CELLS).to(values_BT.device)

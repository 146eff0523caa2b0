"""Training curves, accumulated as sums over steps and ranks and divided once, and their logging.

The validation metrics and their standard errors are computed in `scoring/likelihood.py`.
"""

from collections.abc import Callable, Mapping

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchmetrics import Metric

from lit_illada.objective.loss import NUM_RATIO_BINS, LossSum

OVER_TOKENS = "over_tokens"
_MAIN = ("val/nll_bound", "val/bits_per_byte", "train/loss", "train/nll", "train/accuracy")
_EXACT_MATCH = "val/exact_match_"


class TrainingCurves(Metric):
    """Loss, and unweighted cross-entropy and accuracy of the masked tokens, overall and by mask ratio.

    compute() returns `loss`, `nll` (nats per masked token), `accuracy`, and `nll_by_ratio`, `accuracy_by_ratio` ((10,),
    NaN for bins without tokens). Every value is a ratio of two sums since the last reset, over all ranks. Micro-batches
    with a non-finite loss are excluded, because a single one would make the whole interval non-finite.
    """

    full_state_update = False
    loss_sum: Tensor
    count: Tensor
    bin_sums: Tensor  # (3, 10): nll, num_correct, num_masked

    def __init__(self) -> None:
        super().__init__()
        self.add_state("loss_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("bin_sums", torch.zeros(3, NUM_RATIO_BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, loss: LossSum) -> None:
        is_finite = loss.sum.detach().isfinite()  # selected by `where`, which needs no synchronisation with the device
        self.loss_sum += torch.where(is_finite, loss.sum.detach(), 0.0)
        self.count += torch.where(is_finite, loss.count, 0)
        bins = torch.stack([loss.bins.nll, loss.bins.num_correct, loss.bins.num_masked])
        self.bin_sums += torch.where(is_finite, bins, 0.0)

    def compute(self) -> dict[str, Tensor]:
        nll, num_correct, num_masked = self.bin_sums
        return {
            "loss": self.loss_sum / self.count,
            "nll": nll.sum() / num_masked.sum(),
            "accuracy": num_correct.sum() / num_masked.sum(),
            "nll_by_ratio": nll / num_masked,
            "accuracy_by_ratio": num_correct / num_masked,
        }


def sums_of(metric: Metric, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The states of a metric, all of which are sums, summed over the ranks. Collective: every rank calls it."""
    return {name: sum_over_ranks(getattr(metric, name).clone()) for name in metric._defaults}


def set_sums(metric: Metric, sums: Mapping[str, Tensor]) -> None:
    """Restore a metric's states from saved sums over all ranks. Only one rank restores them; the others start at 0."""
    for name in metric._defaults:
        getattr(metric, name).copy_(sums[name])
    metric._update_count, metric._computed = 1, None


def by_ratio(tag: str, values: Tensor) -> dict[str, Tensor]:
    """One curve per mask-ratio bin, named like `tag/0.1-0.2`; bins without tokens (NaN) are omitted."""
    names = [f"{tag}/{low / 10:.1f}-{(low + 1) / 10:.1f}" for low in range(len(values))]
    return {name: value for name, value in zip(names, values, strict=True) if not value.isnan()}


def publish(module: LightningModule, values: Mapping[str, float | Tensor]) -> None:
    """Log values at the number of completed optimizer steps. They are equal on every rank but for measured times and
    speeds, of which rank 0's are recorded.

    TensorBoard also gets the main curves as over_tokens/<tag>, with the number of training tokens as the step, where
    runs with different batch sizes are comparable. Loggers are called directly because `self.log` would count steps
    from 0 and write only at multiples of one interval.
    """
    module.log_dict({name: float(value) for name, value in values.items()}, logger=False)
    for logger in module.loggers:
        logger.log_metrics({name: float(value) for name, value in values.items()}, step=module.global_step)
        if isinstance(logger, TensorBoardLogger):
            over_tokens = {
                f"{OVER_TOKENS}/{name}": float(value)
                for name, value in values.items()
                if name in _MAIN or (name.startswith(_EXACT_MATCH) and not name.endswith(("_low", "_high")))
            }
            logger.log_metrics(over_tokens, step=getattr(module, "tokens_seen", module.global_step))

"""Masked-diffusion training objectives, as one factorised family:

    L = E_{t ~ p} E_{mask | t} [ w(t) · Σ_{i masked} a_i · CE_i ] / Z

Six choices are independent: p (mask_ratio), w (weighting), a (token_weight), how masks are drawn (mask_draw), how the
ratios of a batch are drawn together (joint_draw), and Z (normaliser). The expected objective depends on p and w only
through p·w. With `importance_corrected`, w is divided by p, so that p changes the variance only; otherwise another p
is another objective. LLaDA's training loss (arXiv 2502.09992) is p = U[ε, 1], w = 1/t, a = 1.

Shapes: B rows, T tokens, M masked tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lit_illada.batch import TokenBatch, TokenScores
from lit_illada.objective.config import DiffusionObjectiveConfig, JointDraw
from lit_illada.objective.joint import draw_uniforms
from lit_illada.objective.loss import LossSum, NoisyBatch, RatioBins, normalise
from lit_illada.objective.mask_ratio import MaskRatio, VarianceOptimal
from lit_illada.objective.masking import draw_masks
from lit_illada.objective.noise import Purpose, uniform


class DiffusionObjective(nn.Module):
    """Masks batches and weights the model's scores. No parameters; a buffer only where the density is learnt."""

    moments: Tensor
    """(2, bins) float64: decayed sums of squared row losses, and of rows."""

    def __init__(self, config: DiffusionObjectiveConfig, mask_token_id: int, seed: int, batch_rows: int) -> None:
        """seed: key of all noise. batch_rows: rows of the global batch, over all ranks and micro-batches."""
        super().__init__()
        self.config = config
        self.mask_token_id = mask_token_id
        self.seed = seed
        self.batch_rows = batch_rows
        if isinstance(config.mask_ratio, VarianceOptimal):
            self.register_buffer("moments", torch.zeros(2, config.mask_ratio.num_bins, dtype=torch.float64))
        # Moments of the current step. Not a buffer, since DDP would overwrite it with rank 0's in the middle of a step.
        self._pending: list[Tensor] = []

    def corrupt(self, batch: TokenBatch, progress: float = 0.0) -> NoisyBatch:
        """Draw mask ratios, then masks. progress: fraction of training done, for a curriculum.

        Returns B rows; with complementary pairs 2·B, the batch and then its complement.
        """
        config = self.config
        mask_ratio = self.mask_ratio(progress)
        u_B = draw_uniforms(config.joint_draw, self.seed, batch.row_ids, self.batch_rows)
        positions_T = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        noise_BT = uniform(self.seed, Purpose.MASK, batch.row_ids, positions_T)
        masks = draw_masks(config.mask_draw, mask_ratio, config.weighting, u_B, noise_BT, batch.is_maskable)
        if config.joint_draw is JointDraw.COMPLEMENTARY:
            masks, batch = masks.with_complement(batch.is_maskable), batch.repeat(2)
        return NoisyBatch(
            noisy_ids=batch.input_ids.masked_fill(masks.is_masked, self.mask_token_id),
            layout=batch.layout,
            is_masked=masks.is_masked,
            targets=batch.input_ids[masks.is_masked],
            is_maskable=batch.is_maskable,
            mask_ratio=masks.mask_ratio,
            density=masks.density,
            weight=masks.weight,
        )

    def loss(self, scores: TokenScores, noisy: NoisyBatch) -> LossSum:
        """Σ_rows w(t)[/p(t)] Σ_i a_i·CE_i, and its count. Where nothing is masked the sum is 0, with a gradient."""
        nll_BT = noisy.spread(scores.nll)
        factor, count = normalise(self.config.normaliser, noisy)
        weight_B = self.config.weighting(noisy.mask_ratio) if noisy.weight is None else noisy.weight
        token_weight_BT = self.config.token_weight(nll_BT, noisy.is_masked, noisy.layout)
        integrand_B = (token_weight_BT * nll_BT * (weight_B[:, None] * factor).float()).sum(1)
        self._observe(integrand_B.detach(), noisy)
        if self.config.importance_corrected:
            integrand_B = integrand_B * torch.where(noisy.density > 0, 1 / noisy.density, 0.0).float()
        return LossSum(integrand_B.sum(), count, RatioBins.of(scores, noisy))

    def end_step(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Update the learnt density; call after each optimizer step.

        reduce: sums a tensor over the ranks, so that all ranks learn the same density.
        """
        if isinstance(self.config.mask_ratio, VarianceOptimal):
            seen = reduce(torch.stack([torch.zeros_like(self.moments), *self._pending]).sum(0))
            # one non-finite loss, whose optimizer step is skipped, would otherwise remain in the moments
            seen = torch.where(seen.isfinite().all(), seen, 0.0)
            self.moments.mul_(self.config.mask_ratio.decay).add_(seen)
            self._pending.clear()

    def mask_ratio(self, progress: float) -> MaskRatio:
        """The distribution of mask ratios at this fraction of training."""
        if isinstance(self.config.mask_ratio, VarianceOptimal):
            return self.config.mask_ratio.learnt(self.moments)
        return self.config.mask_ratio.at(progress)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DiffusionObjective":
        """Move the moments with the module, but leave them float64 when cast: bfloat16 cannot count beyond 256."""
        before = self._buffers.get("moments")
        super()._apply(fn, recurse)
        if before is not None and self.moments.dtype != before.dtype:
            self.moments = before.to(self.moments.device)
        return self

    def _observe(self, integrand_B: Tensor, noisy: NoisyBatch) -> None:
        """Add the squared row losses, before the division by p, to the moments of this step."""
        if self.training and isinstance(self.config.mask_ratio, VarianceOptimal):
            bins = torch.arange(self.config.mask_ratio.num_bins, device=integrand_B.device)
            is_in_bin = (self.config.mask_ratio.bins_of(noisy.mask_ratio) == bins[:, None]).double()  # (bins, B)
            self._pending.append(torch.stack([is_in_bin @ integrand_B.double().square(), is_in_bin.sum(1)]))

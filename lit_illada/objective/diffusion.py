"""Masked-diffusion training objectives, as one factorised family:

    L = E_{t ~ p} E_{mask | t} [ w(t) · Σ_{i masked} a_i · CE_i ] / Z

Six choices are independent: p (mask_ratio), w (weighting), a (token_weight), how masks are drawn (mask_draw), how the
ratios of a batch are drawn together (joint_draw), and Z (normaliser). The expected objective depends on p and w only
through p·w. With `importance_corrected`, w is divided by p, so that p changes the variance only; otherwise another p
is another objective. LLaDA's training loss (arXiv 2502.09992) is p = U[ε, 1], w = 1/t, a = 1.

With block_length each block has a mask ratio of its own, and its masked tokens are predicted given the clean blocks
before it (BD3-LM, arXiv 2503.09573; see `blocks.py`). The loss is the sum over the blocks, so with p = U[0, 1] and
w = 1/t it bounds −log p(x) as a product of blocks: exactly for blocks of one token.

Shapes: B rows, T tokens, M masked tokens.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from lit_illada.batch import TokenBatch, TokenScores
from lit_illada.objective.annealing import draw_visible_later
from lit_illada.objective.blocks import in_blocks, is_block_start
from lit_illada.objective.config import DiffusionObjectiveConfig, JointDraw, MaskDraw
from lit_illada.objective.distribution import Tabulated
from lit_illada.objective.joint import draw_block_uniforms, draw_uniforms
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
        self._learnt: tuple[Tensor, Tabulated] | None = None  # moments, and the density estimated from them
        # Moments of the current step. Not a buffer, since DDP would overwrite it with rank 0's in the middle of a step.
        self._pending: list[Tensor] = []

    def corrupt(self, batch: TokenBatch, progress: float = 0.0) -> NoisyBatch:
        """Draw mask ratios, then masks. progress: fraction of training done, for a curriculum and annealing.

        Returns B rows; with complementary pairs 2·B, the batch and then its complement.
        """
        config = self.config
        mask_ratio, batch = self.mask_ratio(progress), in_blocks(batch, config.block_length)
        if config.attention_annealing is not None and progress < config.attention_annealing:
            visible_BTT = draw_visible_later(batch, self.seed, progress / config.attention_annealing)
            batch = replace(batch, layout=replace(batch.layout, visible_later=visible_BTT))
        blocks_BT = batch.layout.blocks
        draw = config.joint_draw, self.seed, batch.row_ids, self.batch_rows
        u = draw_uniforms(*draw) if blocks_BT is None else draw_block_uniforms(*draw, blocks_BT)
        positions_T = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        noise_BT = uniform(self.seed, Purpose.MASK, batch.row_ids, positions_T)
        masks = draw_masks(
            config.mask_draw,
            mask_ratio,
            config.weighting,
            u,
            noise_BT,
            batch.is_maskable,
            blocks_BT,
            config.importance_corrected,
        )
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
        """Σ w(t)[/p(t)] Σ_i a_i·CE_i over rows or blocks, and its count. If nothing is masked the sum is 0, with a
        gradient."""
        nll_BT = noisy.spread(scores.nll)
        factor, count = normalise(self.config.normaliser, noisy)
        weight = self.config.weighting(noisy.mask_ratio) if noisy.weight is None else noisy.weight
        token_weight_BT = self.config.token_weight(nll_BT, noisy.is_masked, noisy.layout)
        # a row whose mask is empty, such as the complement of a full one, may have an infinite weight
        weight_BT = (noisy.per_token(weight) * factor).float().where(noisy.is_masked, 0.0)
        integrand = noisy.per_ratio(token_weight_BT * nll_BT * weight_BT)
        self._observe(integrand.detach(), noisy)
        if self.config.importance_corrected:
            integrand = integrand * torch.where(noisy.density > 0, 1 / noisy.density, 0.0).float()
        return LossSum(integrand.sum(), count, RatioBins.of(scores, noisy))

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
            if self.config.mask_draw is not MaskDraw.EXACT_K:
                return self.config.mask_ratio.learnt(self.moments)
            # The same object for all micro-batches of a step, since tables of counts are cached by object. Compared by
            # value, because loading a checkpoint changes the moments in place.
            if self._learnt is None or not torch.equal(self._learnt[0], self.moments):
                self._learnt = self.moments.clone(), self.config.mask_ratio.learnt(self.moments)
            return self._learnt[1]
        return self.config.mask_ratio.at(progress)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DiffusionObjective":
        """Move the moments with the module, but leave them float64 when cast: bfloat16 cannot count beyond 256."""
        before = self._buffers.get("moments")
        super()._apply(fn, recurse)
        if before is not None and self.moments.dtype != before.dtype:
            self.moments = before.to(self.moments.device)
        self._learnt = None  # the device may be another
        return self

    def _observe(self, integrand: Tensor, noisy: NoisyBatch) -> None:
        """Add the squared losses of the rows or blocks, before the division by p, to the moments of this step."""
        if self.training and isinstance(self.config.mask_ratio, VarianceOptimal):
            losses, ratios = integrand.double(), noisy.mask_ratio
            if noisy.layout.blocks is not None:
                blocks_BT = noisy.layout.blocks
                has_loss_BT = noisy.is_maskable & is_block_start(blocks_BT)  # a block is maskable as a whole, or not
                losses = torch.zeros_like(losses).scatter_add(1, blocks_BT, losses).gather(1, blocks_BT)
                losses, ratios = losses[has_loss_BT], ratios[has_loss_BT]
            bins = torch.arange(self.config.mask_ratio.num_bins, device=losses.device)
            is_in_bin = (self.config.mask_ratio.bins_of(ratios) == bins[:, None]).double()  # (bins, rows or blocks)
            self._pending.append(torch.stack([is_in_bin @ losses.square(), is_in_bin.sum(1)]))

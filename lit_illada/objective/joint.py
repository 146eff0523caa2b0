"""How are the mask ratios of a global batch drawn together? Each alone is uniform; together they may be spread evenly.

The expected loss never changes, only its variance. Every draw is a function of (seed, global row id), so a row's ratio
does not depend on which rank or micro-batch it falls into.

Complementary pairs need more than the ratios. The batch is laid twice; the second copy masks the tokens that the first
left, so its ratio is 1 − t. The complement of Bernoulli(t) is Bernoulli(1 − t), hence the second copy is right given
its ratio, and the ratio's density is p'(t') = p(1 − t'). So the loss stays unbiased when p' = p (a density symmetric
about ½), or when w is divided by p' and the support is symmetric; then p'(t') is p(t), the first copy's number.
U[ε, 1] is neither: use ε = 0, or a band [ε, 1 − ε]. Exact-k never is: k in 1…L has its complement in 0…L − 1. The
config refuses the rest.

Shapes: B rows, N rows of the global batch.
"""

import torch
from torch import Tensor

from lit_illada.objective.config import JointDraw
from lit_illada.objective.noise import Purpose, golden_steps, random_bits, uniform


def draw_uniforms(joint_draw: JointDraw, seed: int, row_ids: Tensor, batch_rows: int) -> Tensor:
    """(B,) float64 in (0, 1), each uniform: what the quantile function turns into mask ratios.

    row_ids: (B,) int64. batch_rows: rows of the global batch (all ranks, all accumulation); only `stratified` asks.
    """
    match joint_draw:
        case JointDraw.IID | JointDraw.COMPLEMENTARY:
            return uniform(seed, Purpose.MASK_RATIO, row_ids)
        case JointDraw.STRATIFIED:
            return _stratified(seed, row_ids, batch_rows)
        case JointDraw.ANTITHETIC:
            u = uniform(seed, Purpose.MASK_RATIO, row_ids // 2)
            return torch.where(row_ids % 2 == 0, u, 1 - u)
        case JointDraw.KRONECKER:
            offset = random_bits(seed, Purpose.MASK_RATIO, torch.zeros_like(row_ids))
            return golden_steps(offset, row_ids)


def _stratified(seed: int, row_ids: Tensor, batch_rows: int) -> Tensor:
    """Row b of a global batch of N draws from stratum π(b) of N equal ones; π is a permutation, new in every step."""
    step_B = row_ids // batch_rows
    slots_N = torch.arange(batch_rows, device=row_ids.device)
    key_BN = uniform(seed, Purpose.STRATUM, step_B, slots_N)
    own_key_B1 = key_BN.gather(1, (row_ids % batch_rows)[:, None])
    stratum_B = (key_BN < own_key_B1).sum(1)
    u = (stratum_B + uniform(seed, Purpose.MASK_RATIO, row_ids)) / batch_rows
    return u.clamp(2.0**-53, 1 - 2.0**-53)  # the sum may round up to 1

"""Joint draws of the mask ratios of a global batch: each is marginally uniform, together they may be spread evenly.

Only the variance of the loss changes, not its expectation. Every draw is a function of (seed, global row id), so a
row's ratio is independent of its rank and micro-batch.

Complementary pairs need more than ratios. The batch is repeated; the copy masks the tokens that the first left visible,
so its ratio is 1 − t. The complement of Bernoulli(t) is Bernoulli(1 − t), hence the copy has the right distribution
given its ratio, whose density is p'(t') = p(1 − t'). The loss stays unbiased when p' = p (a density symmetric about ½),
or when w is divided by p' and the support is symmetric; then p'(t') is p(t), the first copy's number. U[ε, 1] satisfies
neither: use ε = 0, or a band [ε, 1 − ε]. Exact-k never does: the complement of k in 1…L lies in 0…L − 1. The config
refuses such combinations.

Shapes: B rows, T tokens, N rows of the global batch.
"""

import math

import torch
from torch import Tensor

from lit_illada.objective.config import JointDraw
from lit_illada.objective.noise import Purpose, golden_steps, random_bits, uniform


def draw_uniforms(joint_draw: JointDraw, seed: int, row_ids: Tensor, batch_rows: int) -> Tensor:
    """(B,) float64, marginally uniform on (0, 1); a quantile function turns them into mask ratios.

    row_ids: (B,) int64. batch_rows: rows of the global batch (all ranks and micro-batches), for `stratified`.
    """
    match joint_draw:
        case JointDraw.IID | JointDraw.COMPLEMENTARY:
            return uniform(seed, Purpose.MASK_RATIO, row_ids)
        case JointDraw.STRATIFIED:
            return _stratified(seed, row_ids, batch_rows)
        case JointDraw.ANTITHETIC:
            # neighbouring rows share u
            u = uniform(seed, Purpose.MASK_RATIO, row_ids // 2)
            return torch.where(row_ids % 2 == 0, u, 1 - u)
        case JointDraw.KRONECKER:
            # one random offset for the run: a Cranley–Patterson rotation keeps each row marginally uniform
            offset = random_bits(seed, Purpose.MASK_RATIO, torch.zeros_like(row_ids))
            return golden_steps(offset, row_ids)


def draw_block_uniforms(
    joint_draw: JointDraw, seed: int, row_ids: Tensor, batch_rows: int, blocks_BT: Tensor
) -> Tensor:
    """(B, T) float64, marginally uniform on (0, 1), equal for the tokens of a block.

    iid and complementary: independent numbers of the blocks. Other draws: the row's number, rotated by multiples of an
    irrational number, which spreads the blocks of a row evenly and draws the n-th blocks of the rows as the rows are.
    """
    if joint_draw in (JointDraw.IID, JointDraw.COMPLEMENTARY):
        numbers_T = torch.arange(blocks_BT.shape[1], device=blocks_BT.device)
        return uniform(seed, Purpose.MASK_RATIO, row_ids, numbers_T).gather(1, blocks_BT)
    u_B = draw_uniforms(joint_draw, seed, row_ids, batch_rows)
    # 1 − u rotates the other way, so that antithetic rows stay antithetic in every block
    is_mirrored_B = (row_ids % 2 == 1) if joint_draw is JointDraw.ANTITHETIC else torch.zeros_like(row_ids).bool()
    return rotate(u_B, torch.where(is_mirrored_B[:, None], -blocks_BT, blocks_BT))


def rotate(u_B: Tensor, steps_BT: Tensor) -> Tensor:
    """(B, T) float64: frac(u + step·(√2 − 1)), uniform in (0, 1) if u is."""
    u_BT = (u_B[:, None] + steps_BT * (math.sqrt(2) - 1)) % 1.0
    return u_BT.clamp(2.0**-53, 1 - 2.0**-53)


def _stratified(seed: int, row_ids: Tensor, batch_rows: int) -> Tensor:
    """Row b of a global batch of N rows draws from stratum π(b) of N equal strata; π is a new permutation each step."""
    step_B = row_ids // batch_rows
    slots_N = torch.arange(batch_rows, device=row_ids.device)
    key_BN = uniform(seed, Purpose.STRATUM, step_B, slots_N)
    # π(b) is the rank of the row's key among the keys of its batch
    own_key_B1 = key_BN.gather(1, (row_ids % batch_rows)[:, None])
    stratum_B = (key_BN < own_key_B1).sum(1)
    u = (stratum_B + uniform(seed, Purpose.MASK_RATIO, row_ids)) / batch_rows
    return u.clamp(2.0**-53, 1 - 2.0**-53)  # the sum may round up to 1

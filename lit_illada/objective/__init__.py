"""The training objectives: how tokens are hidden from the model, and how its predictions of them are weighed."""

from lit_illada.objective.autoregressive import AutoregressiveObjective, AutoregressiveObjectiveConfig
from lit_illada.objective.diffusion import DiffusionObjective, DiffusionObjectiveConfig
from lit_illada.objective.joint import JointDraw
from lit_illada.objective.loss import NUM_RATIO_BINS, LossSum, NoisyBatch, Normaliser, Objective, RatioBins
from lit_illada.objective.mask_ratio import MASK_RATIOS
from lit_illada.objective.masking import MaskDraw
from lit_illada.objective.token_weight import TOKEN_WEIGHTS
from lit_illada.objective.weighting import WEIGHTINGS

OBJECTIVES: dict[str, type] = {
    "diffusion": DiffusionObjectiveConfig,
    "autoregressive": AutoregressiveObjectiveConfig,
}

__all__ = [
    "MASK_RATIOS",
    "NUM_RATIO_BINS",
    "OBJECTIVES",
    "TOKEN_WEIGHTS",
    "WEIGHTINGS",
    "AutoregressiveObjective",
    "AutoregressiveObjectiveConfig",
    "DiffusionObjective",
    "DiffusionObjectiveConfig",
    "JointDraw",
    "LossSum",
    "MaskDraw",
    "NoisyBatch",
    "Normaliser",
    "Objective",
    "RatioBins",
]

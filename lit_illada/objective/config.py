"""Configs of the training objectives; `diffusion.py` and `autoregressive.py` implement them."""

from dataclasses import dataclass
from enum import StrEnum

from lit_illada.errors import UserError
from lit_illada.objective.mask_ratio import (
    MASK_RATIOS,
    MaskRatio,
    VarianceOptimal,
    has_symmetric_support,
    is_symmetric,
)
from lit_illada.objective.token_weight import TOKEN_WEIGHTS, TokenWeight
from lit_illada.objective.weighting import WEIGHTINGS, Weighting
from lit_illada.schema import choice, choice_name

# What importance correction may leave out at either end of [0, 1]: LLaDA's epsilon of 0.001, and a little more.
_MOST_LEFT_OUT = 0.01


class MaskDraw(StrEnum):
    BERNOULLI = "bernoulli"  # each token with probability t
    EXACT_K = "exact_k"  # k of a row's tokens, with Bernoulli's expected loss; ⌈r·L⌉ of L for a fixed ratio r


class JointDraw(StrEnum):
    IID = "iid"
    STRATIFIED = "stratified"
    ANTITHETIC = "antithetic"
    COMPLEMENTARY = "complementary"
    KRONECKER = "kronecker"


class Normaliser(StrEnum):
    TOKENS = "tokens"  # maskable tokens: the bound in nats a token
    SEQUENCES = "sequences"  # rows, each weighing the same: Σ S/L_row
    RESPONSE = "response"  # segments (examples), each weighing the same: Σ S/L_segment; LLaDA's fine-tuning
    MASKED = "masked"  # masked tokens


@dataclass(frozen=True)
class DiffusionObjectiveConfig:
    """The default is LLaDA's. Combinations that would silently train something else raise UserError."""

    mask_ratio: MaskRatio = choice(MASK_RATIOS, "uniform")
    weighting: Weighting = choice(WEIGHTINGS, "elbo")
    token_weight: TokenWeight = choice(TOKEN_WEIGHTS, "none")
    mask_draw: MaskDraw = MaskDraw.BERNOULLI
    joint_draw: JointDraw = JointDraw.IID
    normaliser: Normaliser = Normaliser.TOKENS
    importance_corrected: bool = False

    def __post_init__(self) -> None:
        name = choice_name(MASK_RATIOS, self.mask_ratio)
        if self.importance_corrected and not self.mask_ratio.has_density:
            raise UserError(
                f"objective.importance_corrected is true, but mask_ratio {name!r} is a point mass without a density to "
                "divide by: set importance_corrected=false or choose another mask_ratio"
            )
        low, high = self.mask_ratio.support
        if self.importance_corrected and (low > _MOST_LEFT_OUT or high < 1 - _MOST_LEFT_OUT):
            raise UserError(
                f"objective.importance_corrected is true, but mask_ratio {name!r} never draws ratios outside "
                f"[{low:g}, {high:g}], so the corrected objective would lack them: set importance_corrected=false, or "
                f"let it draw from at most {_MOST_LEFT_OUT:g} to at least {1 - _MOST_LEFT_OUT:g}"
            )
        if isinstance(self.mask_ratio, VarianceOptimal) and not self.importance_corrected:
            raise UserError(
                f"objective.mask_ratio {name!r} moves with the loss, so that without correction the objective would "
                "move too: set importance_corrected=true"
            )
        if self.joint_draw is JointDraw.COMPLEMENTARY:
            self._check_complementary(name)

    def _check_complementary(self, name: str) -> None:
        if self.mask_draw is not MaskDraw.BERNOULLI:
            raise UserError(
                f"objective.joint_draw 'complementary' is biased with mask_draw {str(self.mask_draw)!r}, whose k is "
                "never 0 while its complement may be: set mask_draw=bernoulli"
            )
        # A curriculum's centre moves one way, so one that is symmetric at both ends has stood still at 1/2.
        ends = [self.mask_ratio.at(0.0), self.mask_ratio.at(1.0)]
        if not all(map(has_symmetric_support, ends)):
            raise UserError(
                f"objective.joint_draw 'complementary' draws t and 1 − t, but mask_ratio {name!r} draws from "
                f"{list(self.mask_ratio.support)}: set epsilon=0, or a band [low, 1 − low]"
            )
        if not self.importance_corrected and not all(map(is_symmetric, ends)):
            raise UserError(
                f"objective.joint_draw 'complementary' changes the objective, because mask_ratio {name!r} is not "
                "symmetric about 1/2 from the run's start to its end: set importance_corrected=true or choose a "
                "symmetric one"
            )


@dataclass(frozen=True)
class AutoregressiveObjectiveConfig:
    normaliser: Normaliser = Normaliser.TOKENS

    def __post_init__(self) -> None:
        if self.normaliser is Normaliser.MASKED:
            raise UserError("objective.normaliser is 'masked', but nothing is masked here: set normaliser=tokens")


OBJECTIVES: dict[str, type] = {
    "diffusion": DiffusionObjectiveConfig,
    "autoregressive": AutoregressiveObjectiveConfig,
}

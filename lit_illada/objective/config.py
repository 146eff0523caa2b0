"""Configs of the training objectives, which `diffusion.py` and `autoregressive.py` implement."""

from dataclasses import dataclass
from enum import StrEnum

from lit_illada.errors import UserError, require
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

# Mask ratios that importance correction may leave out at either end of [0, 1]; LLaDA's epsilon is 0.001.
_MAX_LEFT_OUT = 0.01


class MaskDraw(StrEnum):
    """How the masked tokens of a row are drawn, given its mask ratio t."""

    BERNOULLI = "bernoulli"  # each token with probability t
    EXACT_K = "exact_k"  # exactly k tokens, with the expected loss of bernoulli; ⌈r·L⌉ of L for a fixed ratio r


class JointDraw(StrEnum):
    """How the mask ratios of a global batch are drawn together; changes only the variance of the loss."""

    IID = "iid"  # independently
    STRATIFIED = "stratified"  # one from each of N equal strata, N rows of the global batch
    ANTITHETIC = "antithetic"  # pairs of rows with u and 1 − u
    COMPLEMENTARY = "complementary"  # each row twice, the second time with the other tokens masked
    KRONECKER = "kronecker"  # golden-ratio sequence over the rows, even for any number of rows


class Normaliser(StrEnum):
    """The count that the summed loss is divided by."""

    TOKENS = "tokens"  # maskable tokens: the bound in nats/token
    SEQUENCES = "sequences"  # rows, with equal weight: Σ S/L_row
    RESPONSE = "response"  # segments (examples), with equal weight: Σ S/L_segment; LLaDA's fine-tuning
    MASKED = "masked"  # masked tokens


@dataclass(frozen=True)
class DiffusionObjectiveConfig:
    """Masked diffusion; the default is LLaDA's objective.

    Raises UserError for combinations that would silently train another objective.
    """

    mask_ratio: MaskRatio = choice(MASK_RATIOS, "uniform")
    """Distribution p(t) of the mask ratio."""
    weighting: Weighting = choice(WEIGHTINGS, "elbo")
    """Weight w(t) of a row's loss."""
    token_weight: TokenWeight = choice(TOKEN_WEIGHTS, "none")
    """Weight of each masked token."""
    mask_draw: MaskDraw = MaskDraw.BERNOULLI
    """How the masked tokens of a row are drawn."""
    joint_draw: JointDraw = JointDraw.IID
    """How the mask ratios of a global batch are drawn together."""
    normaliser: Normaliser = Normaliser.TOKENS
    """Count that the summed loss is divided by."""
    importance_corrected: bool = False
    """Divide w by p: mask_ratio then changes only the variance, otherwise the expected objective."""
    block_length: int | None = None
    """Tokens per block of block diffusion, each block with its own mask ratio and given the clean blocks before it
    (arXiv 2503.09573); 1 is autoregressive; None: the whole row is one block."""
    attention_annealing: float | None = None
    """Fraction of training in which attention grows linearly from causal to bidirectional, so that an autoregressive
    model adapts gradually (DiffuLLaMA, arXiv 2410.17891); None: bidirectional from the start."""

    def __post_init__(self) -> None:
        is_valid = self.block_length is None or self.block_length >= 1
        require(is_valid, "objective.block_length", self.block_length, "1 or more, or null for the whole row")
        annealing = self.attention_annealing
        is_valid = annealing is None or 0 < annealing <= 1
        require(is_valid, "objective.attention_annealing", annealing, "above 0 and at most 1, or null")
        if annealing is not None and self.block_length is not None:
            raise UserError(
                f"objective.attention_annealing is {annealing}, but objective.block_length={self.block_length} fixes "
                "the attention of blocks: set one of them to null"
            )
        name = choice_name(MASK_RATIOS, self.mask_ratio)
        if self.importance_corrected and not self.mask_ratio.has_density:
            raise UserError(
                f"objective.importance_corrected is true, but mask_ratio {name!r} is a point mass without a density to "
                "divide by: set importance_corrected=false or choose another mask_ratio"
            )
        low, high = self.mask_ratio.support
        if self.importance_corrected and (low > _MAX_LEFT_OUT or high < 1 - _MAX_LEFT_OUT):
            raise UserError(
                f"objective.importance_corrected is true, but mask_ratio {name!r} never draws ratios outside "
                f"[{low:g}, {high:g}], so the corrected objective would exclude them: set "
                f"importance_corrected=false, or "
                f"let it draw from at most {_MAX_LEFT_OUT:g} to at least {1 - _MAX_LEFT_OUT:g}"
            )
        if isinstance(self.mask_ratio, VarianceOptimal) and not self.importance_corrected:
            raise UserError(
                f"objective.mask_ratio {name!r} changes with the loss, so without correction the objective would "
                "change too: set importance_corrected=true"
            )
        if self.joint_draw is JointDraw.COMPLEMENTARY:
            self._check_complementary(name)

    def _check_complementary(self, name: str) -> None:
        if self.mask_draw is not MaskDraw.BERNOULLI:
            raise UserError(
                f"objective.joint_draw 'complementary' is biased with mask_draw {str(self.mask_draw)!r}, whose k is "
                "never 0 while its complement may be: set mask_draw=bernoulli"
            )
        # A curriculum moves its centre in one direction; symmetric at both ends, it stays at 1/2 throughout.
        ends = [self.mask_ratio.at(0.0), self.mask_ratio.at(1.0)]
        if not all(map(has_symmetric_support, ends)):
            raise UserError(
                f"objective.joint_draw 'complementary' draws t and 1 − t, but mask_ratio {name!r} draws from "
                f"{list(self.mask_ratio.support)}: set epsilon=0, or a band [low, 1 − low]"
            )
        if not self.importance_corrected and not all(map(is_symmetric, ends)):
            raise UserError(
                f"objective.joint_draw 'complementary' changes the objective, because mask_ratio {name!r} is not "
                "symmetric about 1/2 throughout the run: set importance_corrected=true or choose a "
                "symmetric one"
            )


@dataclass(frozen=True)
class AutoregressiveObjectiveConfig:
    """Next-token prediction."""

    normaliser: Normaliser = Normaliser.TOKENS
    """Count that the summed loss is divided by; not `masked`."""

    def __post_init__(self) -> None:
        if self.normaliser is Normaliser.MASKED:
            raise UserError("objective.normaliser is 'masked', but this objective masks nothing: set normaliser=tokens")


OBJECTIVES: dict[str, type] = {
    "diffusion": DiffusionObjectiveConfig,
    "autoregressive": AutoregressiveObjectiveConfig,
}

"""Config of the alignment's mathematics: one choice per axis; each paper is one file of conf/alignment."""

from dataclasses import dataclass, field
from enum import StrEnum

from lit_illada.alignment.advantages import ADVANTAGES, Advantage
from lit_illada.alignment.estimators import ESTIMATORS, EuboMix
from lit_illada.alignment.forms import FORMS, Anchor, Form
from lit_illada.alignment.levels import Level
from lit_illada.alignment.regularisers import REGULARISERS, NoRegulariser, Regulariser
from lit_illada.alignment.rewards import RewardConfig
from lit_illada.alignment.views import Estimator
from lit_illada.errors import UserError, require
from lit_illada.schema import choice, choice_name


class Normaliser(StrEnum):
    """The count, over all ranks and micro-batches, that the summed loss is divided by."""

    UNITS = "units"  # units: tokens, steps or sequences by level; long completions count more
    SEQUENCES = "sequences"  # the mean over the units of each completion, then the mean over completions
    COMPLETIONS = "completions"  # the sum over the units, divided by the number of completions
    CANVAS = "canvas"  # tokens that the rollout wrote, scored or not: a constant on a fixed canvas


@dataclass(frozen=True)
class ProblemsConfig:
    """Which problems of the task are used. `trainer.val_rows` problems are held out."""

    num_train: int | None = None
    """Training problems; null: all of a file, the first 10 000 of a generated task, less by `difficulties`."""
    difficulties: list[float] | None = None
    """[smallest, largest] difficulty, for training and held-out problems; null: all."""

    def __post_init__(self) -> None:
        require(
            self.num_train is None or self.num_train >= 1, "problems.num_train", self.num_train, "1 or more, or null"
        )
        limits = self.difficulties
        is_range = limits is None or (len(limits) == 2 and limits[0] <= limits[1])
        require(is_range, "problems.difficulties", limits, "[smallest, largest], or null")


@dataclass(frozen=True)
class AlignmentConfig:
    """How rewards change the policy. Raises UserError for combinations without meaning."""

    reward: RewardConfig = field(default_factory=RewardConfig)
    """What is rewarded."""
    estimator: Estimator = choice(ESTIMATORS, "elbo")
    """Estimator of the log-likelihood of a completion."""
    level: Level = Level.SEQUENCE_MEAN
    """Unit of the loss."""
    form: Form = choice(FORMS, "clip")
    """Loss of a unit, given its score, its score under a frozen policy and the advantage."""
    advantage: Advantage = choice(ADVANTAGES, "centred")
    """Weights of the completions of a group, from their rewards."""
    regulariser: Regulariser = choice(REGULARISERS, "none")
    """Penalty on the distance to a frozen policy."""
    normaliser: Normaliser = Normaliser.SEQUENCES
    """Count that the summed loss is divided by."""
    only_mixed_groups: bool = False
    """Leave completions of groups of equal rewards out of the count and the regulariser; their advantage is 0."""
    per_draw: bool = False
    """Apply level and form to each draw of the estimator and average the losses, instead of the scores."""
    group_size: int = 6
    """Completions per prompt; for preference pairs 2."""
    updates: int = 1
    """Optimizer steps per rollout on the same completions."""
    fresh_noise: bool = False
    """Draw new masks for every update; the frozen policies are then scored under those too."""
    share_noise: bool = False
    """Whether the completions of a group share their masks. Policy, rollout policy and reference always do."""
    masked_prompt: float = 0.0
    """Probability to mask a token of the prompt; with blocks also of the clean blocks."""
    score_after_eos: bool = False
    """Whether tokens after the first stop token are scored; if not they are masked, as on the rollout's canvas."""
    temperature_in_score: bool = False
    """Score the policy that samples, with logits divided by the rollout's temperature; false: at temperature 1."""
    recompute_views: bool = False
    """Compute the views of the estimator again in the backward pass: memory does not grow with their number."""
    reference_every: int | None = None
    """Rollouts after which the reference becomes the current policy; null: it stays the initial policy."""

    def __post_init__(self) -> None:
        require(self.group_size >= 2, "alignment.group_size", self.group_size, "2 or more")
        require(self.updates >= 1, "alignment.updates", self.updates, "1 or more")
        require(0 <= self.masked_prompt < 1, "alignment.masked_prompt", self.masked_prompt, "0 ≤ masked_prompt < 1")
        every = self.reference_every
        require(every is None or every >= 1, "alignment.reference_every", every, "1 or more, or null")
        form = choice_name(FORMS, self.form)
        if every is not None and not self.needs(Anchor.REF):
            regulariser = choice_name(REGULARISERS, self.regulariser)
            raise UserError(
                f"alignment.reference_every is {every}, but neither form {form!r} nor regulariser {regulariser!r} "
                "compares with the reference: set alignment.reference_every=null, or alignment/regulariser=kl_ref"
            )
        if self.per_draw and isinstance(self.estimator, EuboMix):
            raise UserError("alignment.per_draw is true, but the upper bound of eubo_mix joins all draws: set it false")
        if self.form.is_pair:
            self._check_pairs(form)

    def _check_pairs(self, form: str) -> None:
        if self.level not in (Level.SEQUENCE, Level.SEQUENCE_MEAN):
            raise UserError(f"alignment.level is '{self.level}', but form {form!r} compares sequences: set sequence")
        if not isinstance(self.regulariser, NoRegulariser):
            raise UserError(f"form {form!r} includes its regulariser: set alignment/regulariser=none")
        if self.estimator.needs_steps:
            estimator = choice_name(ESTIMATORS, self.estimator)
            raise UserError(
                f"alignment.estimator.name is {estimator!r}, which scores the states of a rollout, but form {form!r} "
                "learns from pairs, which have none: set alignment/estimator=elbo"
            )
        require(self.group_size == 2, "alignment.group_size", self.group_size, f"2 with form {form!r}")

    def needs(self, anchor: Anchor) -> bool:
        """Whether the loss compares with the scores of this frozen policy."""
        return anchor in (self.form.anchor, self.regulariser.anchor)

    @property
    def needs_scores_at_zero_advantage(self) -> bool:
        """Whether the scores of completions of advantage 0 matter to the loss or its count."""
        return not isinstance(self.regulariser, NoRegulariser) or self.form.weighs_by_score

    @property
    def has_fresh_views(self) -> bool:
        """Whether every update is scored under masks of its own."""
        return self.fresh_noise and (self.estimator.is_random or self.masked_prompt > 0)

    def mask_number(self, rollout: int, update: int) -> int:
        """Number of the masks, for `completions_noise`, at an update (from 0) of a rollout (from 0)."""
        return rollout * self.updates + (update if self.has_fresh_views else 0)

    def num_scorings(self) -> dict[str, int]:
        """Scorings of every completion per rollout, by policy; each is as many passes as the estimator has views.

        The rollout policy costs nothing at the first update, whose own scores are its scores, nor later under the same
        masks.
        """
        num_masks = self.updates if self.has_fresh_views else 1
        old = num_masks - 1 if self.needs(Anchor.OLD) else 0
        return {"policy": self.updates, "old": old, "ref": num_masks if self.needs(Anchor.REF) else 0}

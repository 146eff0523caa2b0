"""Specification of a sweep: a question, its arms and their common settings, read from YAML in sweeps/."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product
from typing import Any

from lit_illada.errors import UserError

PAPER = "paper"


class Command(StrEnum):
    """Command that a stage runs. All but pretraining start from the checkpoint of the preceding stage."""

    PRETRAIN = "pretrain"
    SFT = "sft"
    ALIGN = "align"
    SCORE = "score"


class Measure(StrEnum):
    """Quantity that a budget equalises between arms."""

    TOKENS = "tokens"  # training tokens
    FLOPS = "flops"  # floating-point operations of training
    SECONDS = "seconds"  # wall time of training
    FORWARDS = "forwards"  # passes of completions through the model in rollouts, scoring and updates of align


class Goal(StrEnum):
    """Direction in which a metric improves."""

    LOWER = "lower"
    HIGHER = "higher"


@dataclass(frozen=True)
class Budget:
    """Training budget, equal for all arms.

    Tokens and FLOPs determine the number of steps. Seconds stop a run at whatever step it has reached, at
    the latest at trainer.max_steps; a learning-rate schedule in steps may then not have finished. Forwards stop an
    alignment run after the rollout at whose end they are nearest to the amount.
    """

    measure: Measure = Measure.TOKENS
    amount: float = 5.0e9  # in units of `measure`
    stage: str | None = None  # stage that the budget limits; None: the first, or the first that aligns for forwards

    def __post_init__(self) -> None:
        if not self.amount > 0:
            raise UserError(f"budget.amount is {self.amount}; it must be above 0")


@dataclass(frozen=True)
class Metric:
    """A number in the summary of a stage's runs."""

    name: str  # such as val/nll_bound
    stage: str
    goal: Goal = Goal.LOWER

    def __post_init__(self) -> None:
        if self.name.startswith("train"):
            raise UserError(
                f"metrics contains {self.name!r}: training losses of different objectives are not comparable; use a "
                "metric that has the same definition for all arms, such as val/nll_bound"
            )


@dataclass(frozen=True)
class Stage:
    """One command, executed for every arm."""

    name: str
    command: Command
    overrides: list[str] = field(default_factory=list)  # KEY=VALUE
    arguments: list[str] = field(default_factory=list)  # words of the command line before the overrides
    seed: int | None = None  # one seed for all repetitions, which then share the run; None: each has its own
    seeded: list[str] = field(default_factory=list)  # settings that also take the seed, such as sft_data.source.seed


@dataclass(frozen=True)
class Arm:
    """Settings of one arm, or of one value of an axis."""

    name: str
    source: str = ""  # paper or code that the setting is taken from
    overrides: dict[str, list[str]] = field(default_factory=dict)  # by stage, KEY=VALUE
    begin_from: str | None = None  # replaces the sweep's begin_from
    skip: list[str] = field(default_factory=list)  # stages that the arm leaves out, such as align in a control


@dataclass(frozen=True)
class NoiseFloor:
    """Rounding replicates: the baseline again at the same seeds, with smaller micro-batches.

    Sums over a batch are then taken in another order, so a replicate and its original differ in rounding only.
    """

    replicates: int = 4  # at the first seeds, each halving the micro-batch; beyond the number of seeds, again

    def __post_init__(self) -> None:
        if self.replicates < 1:
            raise UserError(f"noise_floor.replicates is {self.replicates}; it must be 1 or more, or noise_floor null")


@dataclass(frozen=True)
class Tuning:
    """Runs that choose the value of one key for each arm, by the mean of the primary metric, before the arms run."""

    key: str  # such as optim.optimizer.learning_rate
    values: list[float]  # ascending; the choice is reported where it lies at an end
    seeds: list[int] = field(default_factory=lambda: [100, 101])  # of these runs only
    stage: str | None = None  # stage of the key; None: the first

    def __post_init__(self) -> None:
        if len(self.values) < 2 or sorted(set(self.values)) != self.values:
            raise UserError(f"tune.values is {self.values}; it must hold two or more ascending values")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"tune.seeds is {self.seeds}; it must hold distinct seeds")


@dataclass(frozen=True)
class Scale:
    """Settings of a sweep that differ at one scale. None: as in the sweep itself."""

    seeds: list[int] | None = None
    budget: Budget | None = None
    validations: int | None = None
    baseline: str | None = None
    arms: list[Arm] | None = None
    keep_arms: list[str] | None = None  # names of the sweep's arms that this scale has, and pairs of them; None: all
    axes: dict[str, list[Arm]] | None = None
    metrics: list[Metric] | None = None
    equivalence_margin: float | None = None
    primary_contrasts: list[str] | None = None
    noise_floor: NoiseFloor | None = None
    tune: Tuning | None = None
    overrides: dict[str, list[str]] = field(default_factory=dict)  # by stage, appended
    arguments: dict[str, list[str]] = field(default_factory=dict)  # by stage, appended


@dataclass(frozen=True)
class CommonScale:
    """Settings of all sweeps at one scale, read from sweeps/scale/NAME.yaml."""

    seeds: list[int]
    budget: Budget
    validations: int  # per training run
    overrides: dict[str, list[str]]  # by command, before those of a stage
    noise_floor: NoiseFloor | None = None  # None: no replicates
    tune: Tuning | None = None  # for sweeps that begin with pretraining; None: nothing is tuned


@dataclass(frozen=True)
class SweepSpec:
    """A sweep. Once its scale is applied, `scales` is empty and all other fields are final.

    The defaults of seeds, budget, validations, noise_floor and tune are those of sweeps/scale/NAME.yaml.
    """

    question: str
    baseline: str  # arm that every other arm is compared with
    metrics: list[Metric]  # the first is primary and carries verdicts; the others are descriptive
    stages: list[Stage]
    name: str = ""
    paper: str = ""  # source of the question
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    budget: Budget | None = None
    no_budget: str = ""  # why arms have no common budget; empty if they have one
    begin_from: str | None = None  # checkpoint of the first stage: a run, a converted folder, a file, or one in sweeps/
    validations: int = 10  # per training run, evenly spaced
    warmup_fraction: float | None = None  # of a run's steps; None: the schedule's own warm-up
    arms: list[Arm] = field(default_factory=list)  # named arms, in addition to the grid of `axes`
    axes: dict[str, list[Arm]] = field(default_factory=dict)  # grid: every combination of the values is an arm
    overrides: dict[str, list[str]] = field(default_factory=dict)  # by stage, for all arms, before an arm's own
    # arms whose differences from the baseline answer the question and are tested before all others; empty: all
    # comparisons are alike
    primary_contrasts: list[str] = field(default_factory=list)
    also_compare: list[list[str]] = field(default_factory=list)  # further pairs to compare: [reference, arm]
    # pairs whose objectives are equal in expectation
    equal_in_expectation: list[list[str]] = field(default_factory=list)
    # smallest difference of the primary metric that matters, in its units; None: no equivalence test, no power for it
    equivalence_margin: float | None = None
    noise_floor: NoiseFloor | None = None  # None: no rounding replicates, and no floor beside the effects
    tune: Tuning | None = None  # None: every arm has the values of its overrides
    cannot_learn: list[str] = field(default_factory=list)  # arms that cannot learn context, which the report checks
    scale: str | None = PAPER
    scales: dict[str, Scale] = field(default_factory=dict)

    def all_arms(self) -> list[Arm]:
        """Arms of the grid, then the named ones."""
        grid = [_joined(values) for values in product(*self.axes.values())] if self.axes else []
        return [*grid, *self.arms]

    def labels(self, arms: Sequence[str], seed: int | None) -> dict[str, Any]:
        """Labels of a run's curves: arm, value of each axis, seed."""
        of_axes: dict[str, list[str]] = {axis: [] for axis in self.axes}
        for values in product(*self.axes.values()):
            if _joined(values).name in arms:
                for axis, value in zip(self.axes, values, strict=True):
                    of_axes[axis] = list(dict.fromkeys([*of_axes[axis], value.name]))
        labels = {"arm": ", ".join(arms), **{axis: ", ".join(names) for axis, names in of_axes.items() if names}}
        return labels if seed is None else {**labels, "seed": seed}

    def comparisons(self) -> list[tuple[str, str]]:
        """Pairs (reference, arm): the baseline with every other arm, then those of also_compare."""
        others = [(self.baseline, arm.name) for arm in self.all_arms() if arm.name != self.baseline]
        return [*others, *((first, second) for first, second in self.also_compare)]

    def primary_pairs(self) -> list[tuple[str, str]]:
        """Pairs (reference, arm) of the primary contrasts."""
        return [(self.baseline, arm) for arm in self.primary_contrasts]

    def tested_pairs(self) -> list[tuple[str, str]]:
        """All pairs (reference, arm) that can get a verdict: `comparisons`, then further pairs of equal_in_expectation.

        Those of `primary_pairs` are tested first; Holm's correction counts them, then all others.
        """
        pairs = self.comparisons()
        for one, other in self.equal_in_expectation:
            if (one, other) not in pairs and (other, one) not in pairs:
                pairs.append((one, other))
        return pairs

    def stage(self, name: str) -> Stage:
        """Stage with this name, which must exist."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def budget_stage(self) -> str | None:
        """Stage that the budget limits; None: no budget."""
        if self.budget is None:
            return None
        aligned = [stage.name for stage in self.stages if stage.command is Command.ALIGN]
        first = aligned[0] if aligned and self.budget.measure is Measure.FORWARDS else self.stages[0].name
        return self.budget.stage or first

    @property
    def tuned_stage(self) -> str | None:
        """Stage of the tuned key; None: nothing is tuned."""
        return None if self.tune is None else self.tune.stage or self.stages[0].name

    def stages_of(self, arm: Arm) -> list[Stage]:
        """Stages that an arm runs."""
        return [stage for stage in self.stages if stage.name not in arm.skip]


def _joined(values: Sequence[Arm]) -> Arm:
    """Arm of one combination of axis values. Raises UserError if two of them set begin_from."""
    overrides: dict[str, list[str]] = {}
    for value in values:
        for stage, given in value.overrides.items():
            overrides[stage] = [*overrides.get(stage, []), *given]
    sources = [value.source for value in values if value.source]
    begins = {value.begin_from for value in values if value.begin_from is not None}
    name = "+".join(value.name for value in values)
    if len(begins) > 1:
        raise UserError(f"arm {name!r} has several begin_from ({', '.join(sorted(begins))}): only one axis may set it")
    skipped = list(dict.fromkeys(stage for value in values for stage in value.skip))
    return Arm(name, "; ".join(sources), overrides, next(iter(begins), None), skipped)

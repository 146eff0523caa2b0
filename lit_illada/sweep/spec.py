"""What is a sweep: a question, its arms, and what they share. YAML in sweeps/ becomes these dataclasses."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product
from typing import Any

from lit_illada.errors import UserError, unknown

PAPER = "paper"


class Command(StrEnum):
    """What a stage runs. All but pretraining begin with a checkpoint: that of the stage before."""

    PRETRAIN = "pretrain"
    SFT = "sft"
    SCORE = "score"


class Measure(StrEnum):
    """What arms have equal amounts of: training tokens, training floating-point operations, or seconds of training."""

    TOKENS = "tokens"
    FLOPS = "flops"
    SECONDS = "seconds"


class Goal(StrEnum):
    LOWER = "lower"
    HIGHER = "higher"


@dataclass(frozen=True)
class Budget:
    """What arms share. stage: where it is spent; None: the first.

    tokens and flops set the number of steps. seconds end a run wherever it is then: a schedule that decays by steps has
    not come to its end unless trainer.max_steps is reached before.
    """

    measure: Measure = Measure.TOKENS
    amount: float = 5.0e9
    stage: str | None = None

    def __post_init__(self) -> None:
        if not self.amount > 0:
            raise UserError(f"budget.amount is {self.amount}; it must be above 0")


@dataclass(frozen=True)
class Metric:
    """A number of a stage's summary. goal: which direction is better."""

    name: str
    stage: str
    goal: Goal = Goal.LOWER

    def __post_init__(self) -> None:
        if self.name.startswith("train"):
            raise UserError(
                f"metrics names {self.name!r}: arms with different objectives have training losses that mean different "
                "things; rank by what is measured alike, such as val/nll_bound"
            )


@dataclass(frozen=True)
class Stage:
    """arguments: words of the command before its overrides. seed: the same in every repetition, which then share it."""

    name: str
    command: Command
    overrides: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    seed: int | None = None


@dataclass(frozen=True)
class Arm:
    """What one arm, or one value of an axis, changes in each stage. source: the paper or code it is from. begin_from:
    in the place of the sweep's own."""

    name: str
    source: str = ""
    overrides: dict[str, list[str]] = field(default_factory=dict)
    begin_from: str | None = None


@dataclass(frozen=True)
class Scale:
    """What a sweep has otherwise at a scale; None: as at the others. overrides, arguments: by stage, appended."""

    seeds: list[int] | None = None
    budget: Budget | None = None
    validations: int | None = None
    baseline: str | None = None
    arms: list[Arm] | None = None
    axes: dict[str, list[Arm]] | None = None
    metrics: list[Metric] | None = None
    equivalence_margin: float | None = None
    overrides: dict[str, list[str]] = field(default_factory=dict)
    arguments: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class CommonScale:
    """sweeps/scale/<name>.yaml: what all sweeps share at a scale. overrides: by command, before a stage's own."""

    seeds: list[int]
    budget: Budget
    validations: int
    overrides: dict[str, list[str]]


@dataclass(frozen=True)
class SweepSpec:
    """A sweep. With its scale applied, `scales` is empty and all else is final.

    baseline: the arm that others are compared with.
    metrics: the first is the primary one, by which arms are ranked and get verdicts; the others are descriptive.
    seeds, budget, validations: those of sweeps/scale/<scale>.yaml where the file names none.
    no_budget: why arms share none, where the budget is what they differ in.
    begin_from: the checkpoint that the first stage begins with, where that is not pretraining: a run, a converted
    folder or a checkpoint file; or a folder of sweeps/, of those that come with the package.
    validations: so many, evenly over a training run. warmup_fraction: of a run's steps; None: the schedule's own.
    axes: a grid, every value of one with every value of the others. arms: named ones, beside the grid if there is one.
    overrides: by stage, for every arm, before the arm's own.
    also_compare: pairs of arms, (reference, arm), that are compared beside every arm with the baseline.
    equal_in_expectation: pairs of arms with one expected objective; cannot_learn: arms that learn no context. The
    report checks both.
    equivalence_margin: in units of the primary metric, the largest difference of such a pair that is negligible; None:
    the report does not test whether they are equivalent.
    """

    question: str
    baseline: str
    metrics: list[Metric]
    stages: list[Stage]
    name: str = ""
    paper: str = ""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    budget: Budget | None = None
    no_budget: str = ""
    begin_from: str | None = None
    validations: int = 10
    warmup_fraction: float | None = None
    arms: list[Arm] = field(default_factory=list)
    axes: dict[str, list[Arm]] = field(default_factory=dict)
    overrides: dict[str, list[str]] = field(default_factory=dict)
    also_compare: list[list[str]] = field(default_factory=list)
    equal_in_expectation: list[list[str]] = field(default_factory=list)
    equivalence_margin: float | None = None
    cannot_learn: list[str] = field(default_factory=list)
    scale: str | None = PAPER
    scales: dict[str, Scale] = field(default_factory=dict)

    def all_arms(self) -> list[Arm]:
        """The grid's, then the named ones."""
        grid = [_joined(values) for values in product(*self.axes.values())] if self.axes else []
        return [*grid, *self.arms]

    def labels(self, arms: Sequence[str], seed: int | None) -> dict[str, Any]:
        """What tells a run of these arms from others: their names, the value of each axis, the seed."""
        of_axes: dict[str, list[str]] = {axis: [] for axis in self.axes}
        for values in product(*self.axes.values()):
            if _joined(values).name in arms:
                for axis, value in zip(self.axes, values, strict=True):
                    of_axes[axis] = list(dict.fromkeys([*of_axes[axis], value.name]))
        labels = {"arm": ", ".join(arms), **{axis: ", ".join(names) for axis, names in of_axes.items() if names}}
        return labels if seed is None else {**labels, "seed": seed}

    def comparisons(self) -> list[tuple[str, str]]:
        """Every arm with the baseline, then those of also_compare: (reference, arm)."""
        others = [(self.baseline, arm.name) for arm in self.all_arms() if arm.name != self.baseline]
        return [*others, *((first, second) for first, second in self.also_compare)]

    def tested_pairs(self) -> list[tuple[str, str]]:
        """All pairs, (reference, arm), that can get a verdict: `comparisons`, then other pairs of equal_in_expectation.

        Verdicts are corrected for their number.
        """
        pairs = self.comparisons()
        for one, other in self.equal_in_expectation:
            if (one, other) not in pairs and (other, one) not in pairs:
                pairs.append((one, other))
        return pairs

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def budget_stage(self) -> str | None:
        """Where the budget is spent."""
        return None if self.budget is None else self.budget.stage or self.stages[0].name


def check(spec: SweepSpec) -> None:
    """Raises UserError for what no plan could be made of."""
    for axis, values in spec.axes.items():
        if not values:
            raise UserError(f"axes.{axis} is empty: name at least one value, or leave the axis out")
    arms = [arm.name for arm in spec.all_arms()]
    if not arms:
        raise UserError("no arms: name some under arms, or a grid under axes")
    named = {"arms": arms, "stages": [stage.name for stage in spec.stages], "seeds": list(map(str, spec.seeds))}
    for what, names in named.items():
        if not names:
            raise UserError(f"{what} is empty")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"{what} names {', '.join(twice)} twice")
    if spec.baseline not in arms:
        raise unknown("baseline", spec.baseline, arms)
    _check_arms_named(spec, arms)
    first = spec.stages[0].command
    for each in spec.all_arms():
        begin_from = each.begin_from or spec.begin_from
        if first is not Command.PRETRAIN and begin_from is None:
            raise UserError(
                f"the first stage runs {first}, which begins with a checkpoint: name it in begin_from or pretrain first"
            )
        if first is Command.PRETRAIN and begin_from is not None:
            raise UserError(
                f"begin_from is {begin_from}, and the first stage pretrains: begin with sft or score, or give that "
                "stage the override init_from=…"
            )
    for stage, previous in zip(spec.stages[1:], spec.stages, strict=False):
        if previous.command is Command.SCORE:
            raise UserError(f"stage {stage.name!r} follows {previous.name!r}, which makes no checkpoint")
    _check_stage_names(spec)
    if not spec.metrics:
        raise UserError("metrics is empty: name at least one; the first carries the verdicts")
    if spec.equivalence_margin is not None and not spec.equivalence_margin > 0:
        raise UserError(
            f"equivalence_margin is {spec.equivalence_margin}; it must be above 0, in units of {spec.metrics[0].name}, "
            "or null"
        )
    if spec.validations < 1:
        raise UserError(f"validations is {spec.validations}; it must be 1 or more")
    if spec.warmup_fraction is not None and not 0 <= spec.warmup_fraction < 1:
        raise UserError(f"warmup_fraction is {spec.warmup_fraction}; it must lie in [0, 1), or be null")


def _check_arms_named(spec: SweepSpec, arms: Sequence[str]) -> None:
    pairs = {"also_compare": spec.also_compare, "equal_in_expectation": spec.equal_in_expectation}
    for what, named in pairs.items():
        for pair in named:
            if len(pair) != 2:
                raise UserError(f"{what} holds pairs of arms; got {pair}")
    for arm in (*spec.cannot_learn, *(arm for named in pairs.values() for pair in named for arm in pair)):
        if arm not in arms:
            raise unknown("arm", arm, arms)
    planned = [frozenset(pair) for pair in spec.comparisons()]
    for pair in spec.also_compare:
        if planned.count(frozenset(pair)) > 1 or len(set(pair)) == 1:
            raise UserError(
                f"also_compare names {pair}: each pair must be of two arms and stand once, and every arm is compared "
                f"with {spec.baseline} anyway"
            )


def _check_stage_names(spec: SweepSpec) -> None:
    stages = [stage.name for stage in spec.stages]
    used = [(f"metrics {metric.name}: stage", metric.stage) for metric in spec.metrics]
    used += [("overrides: stage", name) for name in spec.overrides]
    used += [(f"arm {arm.name!r}: stage", name) for arm in spec.all_arms() for name in arm.overrides]
    if spec.budget_stage is not None:
        used.append(("budget.stage", spec.budget_stage))
    for what, name in used:
        if name not in stages:
            raise unknown(what, name, stages)
    if spec.budget_stage is not None and spec.stage(spec.budget_stage).command is Command.SCORE:
        raise UserError(f"budget.stage is {spec.budget_stage!r}, where nothing is trained")


def _joined(values: Sequence[Arm]) -> Arm:
    overrides: dict[str, list[str]] = {}
    for value in values:
        for stage, given in value.overrides.items():
            overrides[stage] = [*overrides.get(stage, []), *given]
    sources = [value.source for value in values if value.source]
    begins = {value.begin_from for value in values if value.begin_from is not None}
    name = "+".join(value.name for value in values)
    if len(begins) > 1:
        raise UserError(
            f"arm {name!r} would begin from each of {', '.join(sorted(begins))}: only one axis may say from what"
        )
    return Arm(name, "; ".join(sources), overrides, next(iter(begins), None))

"""Specification of a sweep: a question, its arms and their common settings, read from YAML in sweeps/."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product
from typing import Any

from lit_illada.errors import UserError, unknown

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
class Scale:
    """Settings of a sweep that differ at one scale. None: as in the sweep itself."""

    seeds: list[int] | None = None
    budget: Budget | None = None
    validations: int | None = None
    baseline: str | None = None
    arms: list[Arm] | None = None
    keep_arms: list[str] | None = None  # names of the sweep's arms that this scale has; None: all
    axes: dict[str, list[Arm]] | None = None
    metrics: list[Metric] | None = None
    equivalence_margin: float | None = None
    overrides: dict[str, list[str]] = field(default_factory=dict)  # by stage, appended
    arguments: dict[str, list[str]] = field(default_factory=dict)  # by stage, appended


@dataclass(frozen=True)
class CommonScale:
    """Settings of all sweeps at one scale, read from sweeps/scale/NAME.yaml."""

    seeds: list[int]
    budget: Budget
    validations: int  # per training run
    overrides: dict[str, list[str]]  # by command, before those of a stage


@dataclass(frozen=True)
class SweepSpec:
    """A sweep. Once its scale is applied, `scales` is empty and all other fields are final.

    The defaults of seeds, budget and validations are those of sweeps/scale/NAME.yaml.
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
    primary_contrast: str | None = None  # arm whose difference from the baseline answers the question
    also_compare: list[list[str]] = field(default_factory=list)  # further pairs to compare: [reference, arm]
    # pairs whose objectives are equal in expectation
    equal_in_expectation: list[list[str]] = field(default_factory=list)
    equivalence_margin: float | None = None  # units of the primary metric; None: no equivalence test
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

    def tested_pairs(self) -> list[tuple[str, str]]:
        """All pairs (reference, arm) that can get a verdict: `comparisons`, then further pairs of equal_in_expectation.

        Holm's correction counts all of them.
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

    def stages_of(self, arm: Arm) -> list[Stage]:
        """Stages that an arm runs."""
        return [stage for stage in self.stages if stage.name not in arm.skip]


def check(spec: SweepSpec) -> None:
    """Raise UserError for a spec that cannot be planned."""
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
            raise UserError(f"{what} contains {', '.join(twice)} twice")
    if spec.baseline not in arms:
        raise unknown("baseline", spec.baseline, arms)
    if spec.primary_contrast is not None and spec.primary_contrast not in set(arms) - {spec.baseline}:
        raise unknown("primary_contrast", spec.primary_contrast, [arm for arm in arms if arm != spec.baseline])
    _check_arms_named(spec, arms)
    for each in spec.all_arms():
        _check_stages(spec, each)
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


def _check_stages(spec: SweepSpec, arm: Arm) -> None:
    stages, begin_from = spec.stages_of(arm), arm.begin_from or spec.begin_from
    if not stages:
        raise UserError(f"arm {arm.name!r} skips all stages ({', '.join(arm.skip)})")
    first = stages[0].command
    if first is not Command.PRETRAIN and begin_from is None:
        raise UserError(
            f"the first stage runs {first}, which needs a checkpoint: name one in begin_from, or pretrain first"
        )
    if first is Command.PRETRAIN and begin_from is not None:
        raise UserError(
            f"begin_from is {begin_from}, but the first stage pretrains: start with sft, align or score, or give that "
            "stage the override init_from=…"
        )
    for stage, previous in zip(stages[1:], stages, strict=False):
        if previous.command is Command.SCORE:
            raise UserError(f"stage {stage.name!r} follows {previous.name!r}, which writes no checkpoint")


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
                f"also_compare names {pair}: each pair must name two arms and occur once; every arm is compared "
                f"with {spec.baseline} already"
            )


def _check_stage_names(spec: SweepSpec) -> None:
    stages = [stage.name for stage in spec.stages]
    used = [(f"metrics {metric.name}: stage", metric.stage) for metric in spec.metrics]
    used += [("overrides: stage", name) for name in spec.overrides]
    used += [(f"arm {arm.name!r}: stage", name) for arm in spec.all_arms() for name in (*arm.overrides, *arm.skip)]
    if spec.budget_stage is not None:
        used.append(("budget.stage", spec.budget_stage))
    for what, name in used:
        if name not in stages:
            raise unknown(what, name, stages)
    for arm in spec.all_arms():
        if missing := [metric for metric in spec.metrics if metric.stage in arm.skip]:
            raise UserError(f"arm {arm.name!r} skips {missing[0].stage!r}, whose {missing[0].name} is a metric")
    if spec.budget is not None and spec.budget_stage is not None:
        _check_measure(spec.budget, spec.stage(spec.budget_stage))


def _check_measure(budget: Budget, stage: Stage) -> None:
    if stage.command is Command.SCORE:
        raise UserError(f"budget.stage is {stage.name!r}, which trains nothing")
    is_aligned = stage.command is Command.ALIGN
    allowed = [Measure.FORWARDS, Measure.SECONDS] if is_aligned else [m for m in Measure if m is not Measure.FORWARDS]
    if budget.measure not in allowed:
        raise UserError(
            f"budget.measure is {budget.measure}, but stage {stage.name!r} runs {stage.command}, which is measured in "
            f"{' or '.join(allowed)}"
        )


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

"""Rejects specs of sweeps that cannot be planned."""

from collections.abc import Sequence

from lit_illada.errors import UserError, unknown
from lit_illada.sweep.spec import Arm, Budget, Command, Measure, Stage, SweepSpec


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
    _check_evidence(spec, arms)
    _check_seeds(spec)
    if spec.validations < 1:
        raise UserError(f"validations is {spec.validations}; it must be 1 or more")
    if spec.warmup_fraction is not None and not 0 <= spec.warmup_fraction < 1:
        raise UserError(f"warmup_fraction is {spec.warmup_fraction}; it must lie in [0, 1), or be null")


def _check_seeds(spec: SweepSpec) -> None:
    """Check the range, which every run checks again at its start."""
    named = {"seeds": spec.seeds, "tune.seeds": spec.tune.seeds if spec.tune else []}
    named |= {f"stages {stage.name}: seed": [stage.seed] for stage in spec.stages if stage.seed is not None}
    for what, seeds in named.items():
        if wrong := [seed for seed in seeds if not 0 <= seed < 2**32]:
            raise UserError(f"{what} contains {wrong[0]}; a seed must lie between 0 and 2**32 - 1")


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


def _check_evidence(spec: SweepSpec, arms: Sequence[str]) -> None:
    """Check the primary contrast, the tuning and the replicates."""
    others = [arm for arm in arms if arm != spec.baseline]
    for contrast in spec.primary_contrasts:
        if contrast not in others:
            raise unknown("arm in primary_contrasts", contrast, others)
        if spec.primary_contrasts.count(contrast) > 1:
            raise UserError(f"primary_contrasts has {contrast!r} more than once")
    if spec.tune is not None:
        if common := sorted(set(spec.tune.seeds) & set(spec.seeds)):
            raise UserError(
                f"tune.seeds and seeds share {', '.join(map(str, common))}: a value chosen on a seed must not be "
                "tested on it"
            )
        stage = spec.tuned_stage
        names = [each.name for each in spec.stages]
        if stage not in names:
            raise unknown("tune.stage", str(stage), names)
        if skipping := [arm.name for arm in spec.all_arms() if stage in arm.skip]:
            raise UserError(f"arm {skipping[0]!r} skips {stage!r}, in which {spec.tune.key} is tuned")

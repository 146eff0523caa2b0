"""Plans a sweep: resolves the stages of every arm and seed, and merges equal runs."""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Protocol

from lit_illada.errors import UserError
from lit_illada.sweep.comparable import check_comparable
from lit_illada.sweep.folder import PlannedRun
from lit_illada.sweep.run_ids import with_ids
from lit_illada.sweep.spec import Arm, Command, Measure, Stage, SweepSpec
from lit_illada.sweep.variants import first_training, replicate_arm, replicates, tuning_arms, with_value

Tree = dict[str, Any]
# settings that name a run or its files and do not affect its computation
_NAMING = ("run_dir", "name")


class Resolve(Protocol):
    """Returns the resolved config of a command as a tree. Raises UserError if it is invalid.

    parent: config of the preceding stage, whose model is adopted. settle: maps the composed tree to further settings
    by dotted key.
    """

    def __call__(
        self, command: str, overrides: Sequence[str], parent: Tree | None, settle: Callable[[Tree], Tree]
    ) -> Tree: ...


# settings that hold the seed of a repetition
_SEEDS = {
    Command.PRETRAIN: ["seed"],
    Command.SFT: ["seed"],
    Command.ALIGN: ["seed"],
    Command.SCORE: ["score.seed", "generation.seed"],
}

# from the name in `begin_from` to a tree with the checkpoint's `model`, and a hash of its content
OpenBegin = Callable[[str], tuple[Tree, str]]

# FLOPs of an optimizer step of a composed config; None while the vocabulary is unknown
CountFlops = Callable[[Tree], float | None]

# fewest and most forward passes of an optimizer step of a composed alignment config; they depend on what is sampled
CountForwards = Callable[[Tree], tuple[float, float]]


@dataclass(frozen=True)
class Costs:
    """Cost of an optimizer step."""

    flops: CountFlops
    forwards: CountForwards


@dataclass(frozen=True)
class _Step:
    """A resolved stage of an arm, before the seed is set."""

    stage: Stage
    overrides: list[str]
    config: Tree
    begin_from: str | None = None  # checkpoint of the first stage; None: the preceding stage's
    begin_content: str | None = None  # hash of that checkpoint's content


def expand(
    spec: SweepSpec,
    resolve: Resolve,
    costs: Costs,
    begun: Mapping[str, str] | None = None,
    open_begin: OpenBegin | None = None,
    chosen: Mapping[str, float] | None = None,
) -> list[PlannedRun]:
    """Plans the runs of a sweep, each once, parents before children.

    Args:
        spec: the sweep, at its scale.
        resolve: composes and validates the config of a run.
        costs: FLOPs and forward passes of one optimizer step.
        begun: ids of existing runs by fingerprint, which are reused.
        open_begin: reads the checkpoint of `begin_from`; required if an arm has one.
        chosen: value of the tuned key by arm; None: not chosen yet, so arms are planned with the middle value.

    Raises:
        UserError: two arms resolve to the same runs, a metric cannot compare arms, or a run would need the id of an
            existing run with other settings.
    """
    # composing a config and hashing a checkpoint take long, so both are done once for all arms that share them
    opened = cache(open_begin) if open_begin else None
    steps_of = partial(_steps, spec, resolve=resolve, costs=costs, open_begin=opened, resolved={})
    arms = {arm.name: arm if spec.tune is None else _at_choice(spec, arm, chosen) for arm in spec.all_arms()}
    paths = {name: steps_of(arm) for name, arm in arms.items()}
    check_comparable(spec, {arm: {step.stage.name: step.config for step in steps} for arm, steps in paths.items()})
    lanes = [(arm.name, seed, arm) for seed, arm in _tuned_lanes(spec)]
    lanes += [(name, seed, arm) for seed in spec.seeds for name, arm in arms.items()]
    lanes += _replicate_lanes(spec, arms, paths)
    runs: dict[str, PlannedRun] = {}
    ends: dict[tuple[int, str], str] = {}
    for name, seed, arm in lanes:
        parent: PlannedRun | None = None
        for step in steps_of(arm):
            run = _run(step, name, seed, parent, costs)
            known = runs.get(run.fingerprint)
            run = run if known is None else replace(known, arms=list(dict.fromkeys([*known.arms, name])))
            runs[run.fingerprint] = parent = run
        assert parent is not None
        # two arms with one final run would be compared with themselves
        if (other := ends.setdefault((seed, parent.fingerprint), name)) != name:
            raise UserError(f"arms {other!r} and {name!r} are identical: their resolved configs are equal")
    return with_ids(list(runs.values()), spec, begun or {})


_Lane = tuple[str, int, Arm]


def _tuned_lanes(spec: SweepSpec) -> list[tuple[int, Arm]]:
    """(seed, arm at a value of the tuned key) of every tuning run."""
    seeds = spec.tune.seeds if spec.tune else []
    return [(seed, tried) for seed in seeds for arm in spec.all_arms() for tried in tuning_arms(spec, arm).values()]


def _at_choice(spec: SweepSpec, arm: Arm, chosen: Mapping[str, float] | None) -> Arm:
    """Arm with the chosen value of the tuned key; before the choice, with the middle one."""
    assert spec.tune is not None
    middle = spec.tune.values[len(spec.tune.values) // 2]
    return with_value(spec, arm, middle if chosen is None else chosen[arm.name])


def _replicate_lanes(spec: SweepSpec, arms: Mapping[str, Arm], paths: Mapping[str, Sequence[_Step]]) -> list[_Lane]:
    """Rounding replicates of the baseline."""
    if spec.noise_floor is None:
        return []
    baseline = arms[spec.baseline]
    stage = first_training(spec, baseline)
    rows = next(s.config for s in paths[spec.baseline] if s.stage.name == stage)["trainer"]["micro_batch_rows"]
    return [(each.name, each.seed, replicate_arm(spec, each, baseline, stage, rows)) for each in replicates(spec)]


def set_in(tree: Tree, key: str, value: Any) -> None:
    """Set a value by its dotted key."""
    *parents, last = key.split(".")
    for name in parents:
        tree = tree[name]
    tree[last] = value


def fingerprint_of(command: str, arguments: Sequence[str], config: Tree, parent: str | None) -> str:
    """SHA-256 of everything that affects a run's computation; equal for runs that compute the same."""
    # the model is the parent's, and its vocabulary size may not be known yet
    dropped = _NAMING if parent is None else (*_NAMING, "model")
    content = {key: value for key, value in config.items() if key not in dropped}
    text = json.dumps([command, list(arguments), content, parent], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _steps(
    spec: SweepSpec,
    arm: Arm,
    resolve: Resolve,
    costs: Costs,
    open_begin: OpenBegin | None,
    resolved: dict[tuple[str, ...], _Step],
) -> list[_Step]:
    """Resolved stages of an arm; `resolved` caches them by their overrides, since arms share stages."""
    steps: list[_Step] = []
    begin_from = arm.begin_from or spec.begin_from
    key: tuple[str, ...] = (begin_from or "",)
    for stage in spec.stages_of(arm):
        overrides = [*stage.overrides, *spec.overrides.get(stage.name, []), *arm.overrides.get(stage.name, [])]
        key = (*key, stage.name, *overrides)
        if key not in resolved:
            before, content = steps[-1].config if steps else None, None
            if not steps and begin_from is not None:
                assert open_begin is not None
                before, content = open_begin(begin_from)
            step = _resolved(spec, stage, overrides, before, resolve, costs, arm)
            resolved[key] = step if content is None else replace(step, begin_from=begin_from, begin_content=content)
        steps.append(resolved[key])
    return steps


def _resolved(
    spec: SweepSpec,
    stage: Stage,
    overrides: list[str],
    before: Tree | None,
    resolve: Resolve,
    costs: Costs,
    arm: Arm,
) -> _Step:
    """Resolve one stage, with the length, validations and warm-up that follow from the budget."""
    settings: Tree = {}

    def settle(tree: Tree) -> Tree:
        if stage.command is not Command.SCORE:
            settings.update(_settings(spec, stage, tree, costs))
        return settings

    try:
        # keys in `seeded` are checked here, and set by `_run`
        config = resolve(stage.command, [*overrides, *(f"{key}=0" for key in stage.seeded)], before, settle)
    except UserError as error:
        raise UserError(f"arm {arm.name!r}, stage {stage.name!r}: {error}") from error
    return _Step(stage, [*overrides, *(f"{key}={json.dumps(value)}" for key, value in settings.items())], config)


def _settings(spec: SweepSpec, stage: Stage, tree: Tree, costs: Costs) -> Tree:
    """Training length from the budget, and the validation interval and warm-up that depend on it."""
    settings: Tree = {}
    steps = tree["trainer"]["max_steps"] if tree.get("epochs") is None else None
    if spec.budget is not None and stage.name == spec.budget_stage:
        if spec.budget.measure is Measure.SECONDS:
            settings["trainer.max_time_s"] = spec.budget.amount
        elif spec.budget.measure is Measure.FORWARDS:
            settings["max_forwards"] = spec.budget.amount
            fewest, most = costs.forwards(tree)
            steps = math.ceil(spec.budget.amount / most)
            settings["trainer.max_steps"] = math.ceil(2 * spec.budget.amount / fewest)  # no limit
        else:
            cost = _step_tokens(tree) if spec.budget.measure is Measure.TOKENS else costs.flops(tree)
            if cost is None:
                raise UserError("a budget in FLOPs needs the vocabulary size: prepare the data first")
            steps = settings["trainer.max_steps"] = math.ceil(spec.budget.amount / cost)
            if tree.get("epochs") is not None:
                settings["epochs"] = None
    if steps is not None:
        settings["trainer.val_every_steps"] = math.ceil(steps / spec.validations)
        if spec.warmup_fraction is not None:
            settings["optim.schedule.warmup_steps"] = round(spec.warmup_fraction * steps)
    return settings


def _step_tokens(tree: Tree) -> int:
    """Tokens per optimizer step."""
    return tree["trainer"]["batch_rows"] * (tree.get("data") or tree["sft_data"])["row_length"]


def _run(step: _Step, arm: str, seed: int, parent: PlannedRun | None, costs: Costs) -> PlannedRun:
    """Planned run of a step at a seed, without its id; `parent` is a fingerprint until `_named`."""
    stage, config, overrides = step.stage, step.config, step.overrides
    num_steps = tokens = flops = None
    own_seed = seed if stage.seed is None else stage.seed
    config = copy.deepcopy(config)
    for key in (*_SEEDS[stage.command], *stage.seeded):
        set_in(config, key, own_seed)
        overrides = [*overrides, f"{key}={own_seed}"]
    if stage.command is not Command.SCORE and config.get("epochs") is None:
        num_steps = config["trainer"]["max_steps"]
        if config.get("max_forwards") is not None:
            num_steps = min(num_steps, math.ceil(config["max_forwards"] / costs.forwards(config)[1]))
        cost = costs.flops(config)
        tokens = None if stage.command is Command.ALIGN else num_steps * _step_tokens(config)
        flops = None if cost is None else num_steps * cost
    begins_with = parent.fingerprint if parent else step.begin_content
    fingerprint = fingerprint_of(stage.command, stage.arguments, config, begins_with)
    return PlannedRun(
        id="",
        stage=stage.name,
        command=stage.command.value,
        arguments=stage.arguments,
        overrides=overrides,
        seed=seed if stage.seed is None else None,
        arms=[arm],
        parent=parent.fingerprint if parent else None,
        begin_from=step.begin_from,
        fingerprint=fingerprint,
        config=config,
        num_steps=num_steps,
        tokens=tokens,
        flops=flops,
    )

"""Planning a sweep: shared runs, ids of runs, and their length under a budget."""

import copy
import math

import pytest

from lit_illada.checkpoints.open import open_checkpoint
from lit_illada.commands import sweep
from lit_illada.cost.alignment import step_forwards
from lit_illada.cost.run_cost import step_flops
from lit_illada.errors import UserError
from lit_illada.runtime.paths import sweeps_dir
from lit_illada.schema import to_tree
from lit_illada.sweep.library import library, read_spec
from lit_illada.sweep.plan import Costs, expand, set_in
from lit_illada.sweep.spec import Arm, Budget, Command, Measure, Stage, SweepSpec
from lit_illada.sweep.variants import replicates

TREES = {
    "pretrain": {
        "name": "x", "run_dir": None, "seed": 0, "p": 0, "model": {"width": 8}, "data": {"row_length": 32},
        "optim": {"schedule": {"warmup_steps": 1}},
        "trainer": {"max_steps": 100, "batch_rows": 4, "val_every_steps": 1, "max_time_s": None},
    },
    "sft": {
        "name": "y", "seed": 0, "q": 0, "epochs": None, "sft_data": {"row_length": 16},
        "optim": {"schedule": {"warmup_steps": 1}},
        "trainer": {"max_steps": 50, "batch_rows": 2, "val_every_steps": 1, "max_time_s": None},
    },
    "align": {
        "name": "z", "seed": 0, "q": 1, "max_forwards": None, "optim": {"schedule": {"warmup_steps": 0}},
        "trainer": {"max_steps": 50, "batch_rows": 2, "val_every_steps": 1, "max_time_s": None},
    },
    "score": {"score": {"seed": 0}, "generation": {"seed": 0}, "r": 0},
}  # fmt: skip


def resolve(command, overrides, parent, settle):
    """A small config system: flat keys, numbers only."""
    tree = copy.deepcopy(TREES[command])
    if command in ("sft", "align"):
        tree["model"] = parent["model"]
    for key, _, value in (override.partition("=") for override in overrides):
        set_in(tree, key, float(value))
    for key, value in settle(tree).items():
        set_in(tree, key, value)
    return tree


def flops(tree):
    return 10.0 * tree["model"]["width"]


COSTS = Costs(flops, lambda tree: (50.0 * tree["q"], 100.0 * tree["q"]))


def stages(*commands, **changes):
    return [Stage(command, Command(command), **changes.get(command, {})) for command in commands]


def spec(arms, stages, **changes):
    values = {"question": "?", "baseline": "a", "metrics": [], "stages": stages, "seeds": [0], "arms": arms}
    return SweepSpec(**{**values, **changes})


def arm(name, **overrides):
    return Arm(name, "", overrides)


def plan(*arguments, **changes):
    begun = changes.pop("begun", None)
    return {run.id: run for run in expand(spec(*arguments, **changes), resolve, COSTS, begun, open_begin)}


def test_arms_share_their_common_stages():
    arms = [arm("a", sft=["q=1"]), arm("b", sft=["q=2"]), arm("c", sft=["q=2"], score=["r=1"])]
    runs = plan(arms, stages("pretrain", "sft", "score"), seeds=[0, 1])
    assert list(runs) == [
        f"{name}-s{seed}" for seed in (0, 1) for name in ("pretrain", "sft-a", "score-a", "sft-b", "score-b", "score-c")
    ]
    assert runs["pretrain-s1"].arms == ["a", "b", "c"]
    assert runs["sft-b-s0"].arms == ["b", "c"]
    assert [runs[id].parent for id in ("pretrain-s1", "sft-a-s1", "score-c-s1")] == [None, "pretrain-s1", "sft-b-s1"]
    assert len({run.fingerprint for run in runs.values()}) == len(runs)


def open_begin(name):
    return {"model": {"width": len(name)}}, f"content of {name[:4]}"


def test_sweep_can_start_from_an_existing_checkpoint():
    arms = [arm("a"), arm("b", score=["r=1"]), Arm("c", begin_from="this one")]
    made = spec(arms, stages("sft", "score"), begin_from="that")
    runs = {run.id: run for run in expand(made, resolve, COSTS, open_begin=open_begin)}
    assert list(runs) == ["sft-a-s0", "score-a-s0", "score-b-s0", "sft-c-s0", "score-c-s0"]
    assert [(run.parent, run.begin_from) for run in runs.values()] == [
        (None, "that"), ("sft-a-s0", None), ("sft-a-s0", None), (None, "this one"), ("sft-c-s0", None)
    ]  # fmt: skip
    assert runs["sft-c-s0"].config["model"] == {"width": 8}


def test_a_checkpoint_that_several_arms_start_from_is_opened_once():
    opened = []

    def counted(name):
        opened.append(name)
        return open_begin(name)

    arms = [arm("a"), arm("b", sft=["q=1"]), arm("c", sft=["q=2"])]
    expand(spec(arms, stages("sft"), begin_from="that"), resolve, COSTS, open_begin=counted)
    assert opened == ["that"]


def test_fingerprint_depends_on_the_content_of_the_checkpoint():
    def fingerprint(name):
        run, _ = expand(
            spec([arm("a")], stages("sft", "score"), begin_from=name), resolve, COSTS, open_begin=open_begin
        )
        return run.fingerprint

    assert fingerprint("base") == fingerprint("base, elsewhere")
    assert fingerprint("base") != fingerprint("other")


def test_stage_with_a_fixed_seed_is_shared_by_all_repetitions():
    runs = plan([arm("a"), arm("b", sft=["q=1"])], stages("pretrain", "sft", pretrain={"seed": 3}), seeds=[0, 1])
    assert list(runs) == ["pretrain", "sft-a-s0", "sft-b-s0", "sft-a-s1", "sft-b-s1"]
    assert "seed=3" in runs["pretrain"].overrides
    assert runs["pretrain"].seed is None
    assert runs["pretrain"].config["seed"] == 3


def test_shared_run_is_named_after_the_common_part_of_its_arms():
    axes = {
        "p": [arm("even", pretrain=["p=2"]), arm("odd", pretrain=["p=3"])],
        "q": [arm("low", sft=["q=1"]), arm("high", sft=["q=2"])],
    }
    runs = plan([], stages("pretrain", "sft"), axes=axes, baseline="even+low")
    assert list(runs)[:3] == ["pretrain-even-s0", "sft-even+low-s0", "sft-even+high-s0"]


def test_ids_are_valid_file_names():
    runs = plan([arm("a/b: c*"), arm("ü 0.15", pretrain=["p=1"])], stages("pretrain"))
    assert list(runs) == ["pretrain-a-b-c-s0", "pretrain-ü-0.15-s0"]


def test_equal_arms_are_rejected():
    with pytest.raises(UserError, match="arms 'a' and 'b' are identical"):
        plan([arm("a", pretrain=["p=1"]), arm("b", pretrain=["p=1.0"])], stages("pretrain"))


def test_fingerprint_ignores_names_and_folders():
    runs = [plan([arm("a", pretrain=[f"name={n}"])], stages("pretrain")) for n in (1, 2)]
    assert runs[0]["pretrain-a-s0"].fingerprint == runs[1]["pretrain-a-s0"].fingerprint


def test_started_run_retains_its_id():
    stage = stages("pretrain")
    (old,) = plan([arm("a", pretrain=["p=1"])], stage).values()
    runs = plan([arm("a", pretrain=["p=1"]), arm("b", pretrain=["p=2"])], stage, begun={old.fingerprint: "older"})
    assert list(runs) == ["older", "pretrain-b-s0"]
    with pytest.raises(UserError, match=r"holds a run 'pretrain-a-s0'.*--folder"):
        plan([arm("a", pretrain=["p=9"])], stage, begun={old.fingerprint: "pretrain-a-s0"})


def test_a_numbered_id_of_a_started_run_is_not_given_to_another():
    """The ids of `x+one` and `x one` are equal but for the number; only the second has started."""
    stage = stages("pretrain")
    arms = [arm("x y", pretrain=["p=1"]), arm("x-y", pretrain=["p=2"])]
    first, second = plan(arms, stage).values()
    assert (first.id, second.id) == ("pretrain-x-y-s0", "pretrain-x-y-s0-2")
    begun = {second.fingerprint: second.id}
    assert list(plan(arms, stage, begun=begun)) == ["pretrain-x-y-s0", "pretrain-x-y-s0-2"]
    others = [arm("x y", pretrain=["p=3"]), arm("x-y", pretrain=["p=4"])]
    assert list(plan(others, stage, begun=begun)) == ["pretrain-x-y-s0", "pretrain-x-y-s0-3"]
    more = [arms[0], arm("x/y", pretrain=["p=3"]), arms[1]]
    assert plan(more, stage, begun=begun)[second.id].fingerprint == second.fingerprint


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_token_budget_is_independent_of_the_batch(rows):
    arms = [arm("a"), arm("b", pretrain=[f"trainer.batch_rows={rows}", "p=1"])]
    for run in plan(arms, stages("pretrain"), budget=Budget(Measure.TOKENS, 10_000)).values():
        batch = run.config["trainer"]["batch_rows"] * 32
        assert 0 <= run.tokens - 10_000 < batch
        assert f"trainer.max_steps={run.num_steps}" in run.overrides
        assert run.config["trainer"]["val_every_steps"] == math.ceil(run.num_steps / 10)


def test_flops_budget_gives_the_larger_model_fewer_steps():
    runs = plan(
        [arm("a"), arm("b", pretrain=["model.width=16"])], stages("pretrain"), budget=Budget(Measure.FLOPS, 8000)
    )
    assert [run.num_steps for run in runs.values()] == [100, 50]
    assert [run.flops for run in runs.values()] == [8000, 8000]


def test_budget_of_seconds_is_a_time_limit():
    (run,) = plan([arm("a")], stages("pretrain"), budget=Budget(Measure.SECONDS, 90)).values()
    assert run.config["trainer"]["max_time_s"] == 90
    assert "trainer.max_time_s=90" in run.overrides


def test_budget_applies_to_its_stage():
    budget = Budget(Measure.TOKENS, 3200, "sft")
    runs = plan([arm("a")], stages("pretrain", "sft"), budget=budget)
    assert [run.num_steps for run in runs.values()] == [100, 100]
    assert runs["sft-a-s0"].tokens == 3200


def test_budget_of_forwards_limits_the_alignment_and_gives_the_cheaper_arm_more_steps():
    arms = [arm("a"), arm("b", align=["q=4"])]
    runs = plan(arms, stages("sft", "align"), budget=Budget(Measure.FORWARDS, 10_000), begin_from="that")
    assert list(runs) == ["sft-s0", "align-a-s0", "align-b-s0"]
    for run, fewest_steps in zip(list(runs.values())[1:], (100, 25), strict=True):
        assert "max_forwards=10000" in run.overrides
        assert run.config["max_forwards"] == 10_000
        assert run.num_steps == fewest_steps
        assert run.config["trainer"]["val_every_steps"] == math.ceil(fewest_steps / 10)
        # completions may be so short that a step costs half as much: max_steps must not end the run first
        assert run.config["trainer"]["max_steps"] == 4 * fewest_steps


def test_an_arm_can_leave_out_a_stage():
    arms = [arm("a"), Arm("control", skip=["align"])]
    runs = plan(arms, stages("sft", "align", "score"), begin_from="that")
    assert list(runs) == ["sft-s0", "align-a-s0", "score-a-s0", "score-control-s0"]
    assert [run.parent for run in runs.values()] == [None, "sft-s0", "align-a-s0", "sft-s0"]


def test_warmup_fraction_sets_warmup_steps():
    (run,) = plan([arm("a")], stages("pretrain"), budget=Budget(Measure.TOKENS, 128_000), warmup_fraction=0.1).values()
    assert run.config["optim"]["schedule"]["warmup_steps"] == 100


def test_length_of_epochs_is_unknown_without_data():
    runs = plan([arm("a", sft=["epochs=3"])], stages("pretrain", "sft"))
    assert (runs["sft-a-s0"].num_steps, runs["sft-a-s0"].tokens, runs["sft-a-s0"].flops) == (None, None, None)


def test_error_names_the_invalid_arm():
    broken = Stage("pretrain", Command.PRETRAIN, ["objective/mask_ratio=uniformm"])
    with pytest.raises(UserError, match=r"arm 'a', stage 'pretrain': .*uniformm"):
        expand(spec([arm("a")], [broken]), sweep.resolve, Costs(step_flops, step_forwards))


def test_settings_in_seeded_take_the_seed_of_a_repetition():
    runs = expand(spec([arm("a")], [Stage("pretrain", Command.PRETRAIN, seeded=["p"])]), resolve, COSTS)
    assert [run.config["p"] for run in runs] == [run.seed for run in runs]
    assert all(f"p={run.seed}" in run.overrides for run in runs)
    broken = Stage("pretrain", Command.PRETRAIN, seeded=["trainer.sede"])
    with pytest.raises(UserError, match=r"trainer.sede"):
        expand(spec([arm("a")], [broken]), sweep.resolve, Costs(step_flops, step_forwards))


def check_library(name, scale, keep):
    is_of_one_scale = read_spec(name).scale in ("loops", "rl")
    spec = read_spec(name, [] if is_of_one_scale else [f"scale={scale}"])
    if keep is not None and not spec.axes:
        selected = [spec.arms[index] for index in keep]
        object.__setattr__(spec, "arms", selected)
        object.__setattr__(spec, "noise_floor", None)  # its replicates repeat the baseline
    elif keep is not None:
        object.__setattr__(spec, "axes", {axis: [values[-1]] for axis, values in spec.axes.items()})
    runs = expand(spec, sweep.resolve, Costs(step_flops, step_forwards), open_begin=sweep.open_begin)
    assert {arm for run in runs for arm in run.arms} == {each.name for each in [*spec.all_arms(), *replicates(spec)]}
    ids = [run.id for run in runs]
    assert len(set(ids)) == len(ids)
    for run in runs:
        assert run.parent is None or run.parent in ids[: ids.index(run.id)]
    if spec.budget is not None:
        spent = [run for run in runs if run.stage == spec.budget_stage]
        if spec.budget.measure is Measure.FORWARDS:
            assert {run.config["max_forwards"] for run in spent} == {spec.budget.amount}
            return
        amounts = [run.tokens if spec.budget.measure is Measure.TOKENS else run.flops for run in spent]
        assert all(0.97 < amount / spec.budget.amount < 1.03 for amount in amounts)


@pytest.mark.parametrize("name", library())
def test_the_last_arm_of_every_sweep_of_the_library_can_be_planned(name):
    check_library(name, "nano", keep=[-1])


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["nano", "paper"])
@pytest.mark.parametrize("name", library())
def test_every_sweep_of_the_library_can_be_planned(name, scale):
    check_library(name, scale, keep=None)


def test_an_arm_that_starts_from_weights_is_planned_with_their_model():
    start = sweeps_dir() / "loop_base" / "autoregressive"
    adapted = {"pretrain": ["experiment=adapt", "data=stdlib", f"init_from={start}"]}
    arms = [Arm("a", overrides=adapted)]
    planned = SweepSpec("?", "a", [], stages("pretrain"), seeds=[0], arms=arms, budget=Budget(Measure.TOKENS, 1e6))
    (run,) = expand(planned, sweep.resolve, Costs(step_flops, step_forwards))
    model, of_start = run.config["model"], to_tree(open_checkpoint(start).model)
    assert model == {**of_start, "is_causal": False, "predicts_next": True}
    with pytest.raises(UserError, match="determines the model: leave out model=nano"):
        sweep.resolve("pretrain", ["model=nano", *adapted["pretrain"]], None, lambda tree: {})

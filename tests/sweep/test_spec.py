"""A sweep's YAML: what is read, what a scale changes, what is refused and how."""

import dataclasses

import pytest
import yaml

from lit_illada.errors import UserError
from lit_illada.runtime.paths import sweeps_dir
from lit_illada.sweep.folder import SweepFolder
from lit_illada.sweep.library import library, read_spec

SPEC = {
    "question": "Which?",
    "baseline": "a",
    "scale": None,
    "metrics": [{"name": "val/nll_bound", "stage": "pretrain"}],
    "stages": [{"name": "pretrain", "command": "pretrain", "overrides": ["model=nano"]}],
    "arms": [{"name": "a"}, {"name": "b", "source": "a paper", "overrides": {"pretrain": ["model=100m"]}}],
}
IN_ISSUE = {
    "mask_ratio", "loss_weighting", "mask_ratio_x_weighting", "mask_draw", "normaliser", "epsilon", "random_split",
    "lr_schedule", "kv_heads", "tied_embeddings", "ffn_width", "model_scale", "ar_vs_diffusion", "sft_masking",
    "sft_epochs", "generation", "scoring_rule",
}  # fmt: skip


@pytest.fixture
def read(tmp_path):
    def read(*overrides, **changes):
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump({**SPEC, **changes}), encoding="utf-8")
        return read_spec(str(file), overrides)

    return read


def test_a_spec_takes_its_name_from_its_file(read):
    spec = read()
    assert spec.name == "mine"
    assert [arm.name for arm in spec.all_arms()] == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "overrides", "told"),
    [
        ({"sedes": [1]}, [], "unknown config key 'sedes'.*did you mean 'seeds'"),
        ({"arms": [{"name": "a", "overides": {}}]}, [], r"arms\[0\].overides.*did you mean 'arms\[0\].overrides'"),
        ({"arms": []}, [], "no arms"),
        ({"axes": {"empty": []}}, [], "axes.empty is empty"),
        ({"seeds": []}, [], "seeds is empty"),
        ({"seeds": [1, 1]}, [], "seeds names 1 twice"),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, [], "arms names a twice"),
        ({"baseline": "bb"}, [], "unknown baseline 'bb'.*did you mean 'b'"),
        ({"metrics": []}, [], "metrics is empty"),
        ({"metrics": [{"name": "x", "stage": "pretrian"}]}, [], "'pretrian'.*did you mean 'pretrain'"),
        ({"arms": [{"name": "a", "overrides": {"sft": []}}]}, [], "arm 'a': stage 'sft'"),
        ({"stages": [{"name": "sft", "command": "sft"}]}, [], "first stage runs sft, which needs a checkpoint"),
        ({"begin_from": "base"}, [], "begin_from is base, but the first stage pretrains"),
        ({"stages": [{"name": "p"}]}, [], r"stages\[0\] lacks stages\[0\].command"),
        ({"stages": [{"name": "p", "command": "tune"}]}, [], "unknown stages.*'tune'.*pretrain, score, sft"),
        ({"budget": {"measure": "tokens", "amount": 0}}, [], "budget.amount is 0.0; it must be above 0"),
        ({"budget": {"measure": "token"}}, [], "did you mean 'tokens'"),
        ({"validations": 0}, [], "validations is 0"),
        ({}, ["seeds"], "'seeds' is no override"),
        ({}, ["arms.0.name=c"], "arms is a list"),
        ({}, ["+scale=nanno"], "unknown scale 'nanno'.*did you mean 'nano'"),
    ],
)
def test_what_could_not_be_planned_is_refused(read, changes, overrides, told):
    with pytest.raises(UserError, match=told):
        read(*overrides, **changes)


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(UserError, match=r"unknown sweep 'mask_ration'.*did you mean 'mask_ratio'"):
        read_spec("mask_ration")


def test_a_grid_is_every_value_with_every_other_and_named_arms_stand_beside_it(read):
    axes = {
        "p": [{"name": "x", "source": "one", "overrides": {"pretrain": ["p=1"]}}, {"name": "y"}],
        "w": [{"name": "u", "source": "two", "overrides": {"pretrain": ["w=1"]}}, {"name": "v"}],
    }
    arms = read(axes=axes).all_arms()
    assert [arm.name for arm in arms] == ["x+u", "x+v", "y+u", "y+v", "a", "b"]
    assert (arms[0].source, arms[0].overrides) == ("one; two", {"pretrain": ["p=1", "w=1"]})


def test_one_axis_at_most_says_what_a_run_begins_with(read):
    stages = [{"name": "pretrain", "command": "score"}]
    axes = {"of": [{"name": "a", "begin_from": "this"}], "by": [{"name": "u"}, {"name": "v", "begin_from": "that"}]}
    with pytest.raises(UserError, match=r"'v\+a' has several begin_from \(that, this\)"):
        read(axes=axes, stages=stages)
    axes["by"].pop()
    assert [arm.begin_from for arm in read(axes=axes, stages=stages, begin_from="x", baseline="u+a").all_arms()] == [
        "this", None, None
    ]  # fmt: skip


def test_the_command_line_has_the_last_word(read):
    scales = {"nano": {"seeds": [7], "overrides": {"pretrain": ["own=1"]}}}
    spec = read("+scale=nano", "seeds=[3, 4]", "budget.amount=2e5", scales=scales)
    assert spec.seeds == [3, 4]
    assert spec.budget.amount == 2e5
    assert read("+scale=nano", scales=scales).seeds == [7]


def test_a_scale_lies_under_the_file_and_its_own_part_on_top(read):
    spec = read("+scale=nano", seeds=[9], scales={"nano": {"overrides": {"pretrain": ["own=1"]}}})
    assert spec.seeds == [9]  # the file's, where its own part of the scale names none
    common = yaml.safe_load((sweeps_dir() / "scale" / "nano.yaml").read_text())
    assert spec.stages[0].overrides == [*common["overrides"]["pretrain"], "model=nano", "own=1"]
    assert spec.budget.amount == common["budget"]["amount"]


def test_a_resolved_spec_reads_back_as_it_was_written(read, tmp_path):
    spec = read("+scale=nano", scales={"nano": {"arms": [{"name": "a"}, {"name": "c"}]}})
    folder = SweepFolder(tmp_path / "sweep")
    folder.write(spec, [])
    assert folder.read_spec() == spec
    assert read_spec(str(folder.path)) == spec
    assert read_spec(str(folder.path), ["seeds=[5]"]) == dataclasses.replace(spec, seeds=[5])
    with pytest.raises(UserError, match="is fixed, nano"):
        read_spec(str(folder.path), ["scale=paper"])


def test_the_library_holds_every_sweep_that_is_promised():
    assert set(library()) >= IN_ISSUE


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("[model=1b]", ["model=1b"]),
        ("[model=1b,optimizer.betas=[0.9,0.95]]", ["model=1b", "optimizer.betas=[0.9,0.95]"]),
        ("[model=1b, name=it's]", ["model=1b", "name=it's"]),
        ("['model=1b',\"data.name='a,b'\"]", ["model=1b", "data.name='a,b'"]),
        ('["model=1b", "seed=3"]', ["model=1b", "seed=3"]),
        ("[]", []),
    ],
)
def test_overrides_of_a_stage_need_no_quotes(read, written, read_as):
    assert read(f"overrides.pretrain={written}").overrides == {"pretrain": read_as}


@pytest.mark.parametrize("scale", ["nano", "paper"])
@pytest.mark.parametrize("name", library())
def test_a_sweep_of_the_library_says_what_it_asks_and_where_each_arm_is_from(name, scale):
    spec = read_spec(name, [f"scale={scale}"])
    assert spec.question.endswith("?")
    assert spec.paper
    assert all(arm.source for arm in spec.all_arms())
    assert (spec.budget is None) == bool(spec.no_budget)
    assert len(spec.seeds) >= 2 or name == "loop_base"  # which makes a model, and compares nothing
    text = (sweeps_dir() / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# "), "a comment says what it is for"

"""Reading a sweep's YAML: scales, overrides and errors."""

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
TUNED = {
    "stages": [*SPEC["stages"], {"name": "sft", "command": "sft"}],
    "metrics": [{"name": "val/nll_bound", "stage": "sft"}],
}
ALIGNED = {
    "stages": [{"name": "align", "command": "align"}],
    "metrics": [{"name": "val/accuracy", "stage": "align", "goal": "higher"}],
    "arms": [{"name": "a"}],
    "begin_from": "base",
}
IN_ISSUE = {
    "mask_ratio", "loss_weighting", "mask_ratio_x_weighting", "mask_draw", "normaliser", "epsilon", "random_split",
    "lr_schedule", "kv_heads", "tied_embeddings", "ffn_width", "model_scale", "ar_vs_diffusion", "sft_masking",
    "block_length",
    "sft_epochs", "generation", "scoring_rule", "rl_methods", "rl_estimator", "rl_form", "rl_loops",
}  # fmt: skip


@pytest.fixture
def read(tmp_path):
    def read(*overrides, **changes):
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump({**SPEC, **changes}), encoding="utf-8")
        return read_spec(str(file), overrides)

    return read


def test_name_of_a_spec_is_that_of_its_file(read):
    spec = read()
    assert spec.name == "mine"
    assert [arm.name for arm in spec.all_arms()] == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({"sedes": [1]}, [], "unknown config key 'sedes'.*did you mean 'seeds'"),
        ({"arms": [{"name": "a", "overides": {}}]}, [], r"arms\[0\].overides.*did you mean 'arms\[0\].overrides'"),
        ({"arms": []}, [], "no arms"),
        ({"primary_contrasts": ["bb"]}, [], "unknown arm in primary_contrasts 'bb'.*did you mean 'b'"),
        ({"primary_contrasts": ["b", "a"]}, [], "unknown arm in primary_contrasts 'a'"),
        ({"primary_contrasts": ["b", "b"]}, [], "primary_contrasts has 'b' more than once"),
        ({"axes": {"empty": []}}, [], "axes.empty is empty"),
        ({"seeds": []}, [], "seeds is empty"),
        ({"seeds": [1, 1]}, [], "seeds contains 1 twice"),
        ({"seeds": [-1, 0]}, [], r"seeds contains -1; a seed must lie between 0 and 2\*\*32 - 1"),
        ({"tune": {"key": "p", "values": [1, 2], "seeds": [2**32]}}, [], "tune.seeds contains 4294967296; a seed must"),
        ({"stages": [{**SPEC["stages"][0], "seed": -3}]}, [], "stages pretrain: seed contains -3; a seed must"),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, [], "arms contains a twice"),
        ({"baseline": "bb"}, [], "unknown baseline 'bb'.*did you mean 'b'"),
        ({"metrics": []}, [], "metrics is empty"),
        ({"metrics": [{"name": "x", "stage": "pretrian"}]}, [], "'pretrian'.*did you mean 'pretrain'"),
        ({"arms": [{"name": "a", "overrides": {"sft": []}}]}, [], "arm 'a': stage 'sft'"),
        ({"stages": [{"name": "sft", "command": "sft"}]}, [], "first stage runs sft, which needs a checkpoint"),
        ({"begin_from": "base"}, [], "begin_from is base, but the first stage pretrains"),
        ({"arms": [{"name": "a", "skip": ["pretrian"]}]}, [], "'pretrian'.*did you mean 'pretrain'"),
        ({"arms": [{"name": "a", "skip": ["pretrain"]}]}, [], "arm 'a' skips all stages"),
        (
            {**TUNED, "arms": [{"name": "a", "skip": ["sft"]}]},
            [],
            "arm 'a' skips 'sft', whose val/nll_bound is a metric",
        ),
        (
            {**ALIGNED, "budget": {"measure": "tokens"}},
            [],
            "stage 'align' runs align, which is measured in forwards or",
        ),
        (
            {"budget": {"measure": "forwards"}},
            [],
            "stage 'pretrain' runs pretrain, which is measured in tokens or flops",
        ),
        ({"stages": [{"name": "p"}]}, [], r"stages\[0\] lacks stages\[0\].command"),
        ({"stages": [{"name": "p", "command": "tune"}]}, [], "unknown stages.*'tune'.*align, pretrain, score, sft"),
        ({"budget": {"measure": "tokens", "amount": 0}}, [], "budget.amount is 0.0; it must be above 0"),
        ({"budget": {"measure": "token"}}, [], "did you mean 'tokens'"),
        ({"validations": 0}, [], "validations is 0"),
        ({}, ["seeds"], "'seeds' is no override"),
        ({}, ["arms.0.name=c"], "arms is a list"),
        ({}, ["+scale=nanno"], "unknown scale 'nanno'.*did you mean 'nano'"),
    ],
)
def test_invalid_spec_is_rejected(read, changes, overrides, message):
    with pytest.raises(UserError, match=message):
        read(*overrides, **changes)


def test_unknown_sweep_suggests_the_nearest():
    with pytest.raises(UserError, match=r"unknown sweep 'mask_ration'.*did you mean 'mask_ratio'"):
        read_spec("mask_ration")


def test_arms_are_the_grid_of_axes_and_the_named_ones(read):
    axes = {
        "p": [{"name": "x", "source": "one", "overrides": {"pretrain": ["p=1"]}}, {"name": "y"}],
        "w": [{"name": "u", "source": "two", "overrides": {"pretrain": ["w=1"]}}, {"name": "v"}],
    }
    arms = read(axes=axes).all_arms()
    assert [arm.name for arm in arms] == ["x+u", "x+v", "y+u", "y+v", "a", "b"]
    assert (arms[0].source, arms[0].overrides) == ("one; two", {"pretrain": ["p=1", "w=1"]})


def test_only_one_axis_can_set_begin_from(read):
    stages = [{"name": "pretrain", "command": "score"}]
    axes = {"of": [{"name": "a", "begin_from": "this"}], "by": [{"name": "u"}, {"name": "v", "begin_from": "that"}]}
    with pytest.raises(UserError, match=r"'v\+a' has several begin_from \(that, this\)"):
        read(axes=axes, stages=stages)
    axes["by"].pop()
    assert [arm.begin_from for arm in read(axes=axes, stages=stages, begin_from="x", baseline="u+a").all_arms()] == [
        "this", None, None
    ]  # fmt: skip


def test_command_line_overrides_scale_and_file(read):
    scales = {"nano": {"seeds": [7], "overrides": {"pretrain": ["own=1"]}}}
    spec = read("+scale=nano", "seeds=[3, 4]", "budget.amount=2e5", scales=scales)
    assert spec.seeds == [3, 4]
    assert spec.budget.amount == 2e5
    assert read("+scale=nano", scales=scales).seeds == [7]


def test_file_overrides_common_scale_and_own_scale_overrides_file(read):
    spec = read("+scale=nano", seeds=[9], scales={"nano": {"overrides": {"pretrain": ["own=1"]}}})
    assert spec.seeds == [9]  # from the file, since its own scale sets none
    common = yaml.safe_load((sweeps_dir() / "scale" / "nano.yaml").read_text())
    assert spec.stages[0].overrides == [*common["overrides"]["pretrain"], "model=nano", "own=1"]
    assert spec.budget.amount == common["budget"]["amount"]


def test_scale_keeps_arms_by_name(read):
    assert [arm.name for arm in read("+scale=nano", scales={"nano": {"keep_arms": ["a"]}}).arms] == ["a"]
    with pytest.raises(UserError, match=r"scales.nano.keep_arms: arm 'c'"):
        read("+scale=nano", scales={"nano": {"keep_arms": ["a", "c"]}})


def test_scale_keeps_the_pairs_of_its_arms_only(read):
    arms = [{"name": name, "overrides": {"pretrain": [f"seed={number}"]}} for number, name in enumerate("abcd")]
    pairs = {"also_compare": [["b", "c"], ["b", "d"]], "equal_in_expectation": [["a", "d"], ["a", "b"]]}
    spec = read("+scale=nano", arms=arms, baseline="a", scales={"nano": {"keep_arms": ["a", "b", "c"]}}, **pairs)
    assert spec.also_compare == [["b", "c"]]
    assert spec.equal_in_expectation == [["a", "b"]]


def test_resolved_spec_is_read_back_unchanged(read, tmp_path):
    spec = read("+scale=nano", scales={"nano": {"arms": [{"name": "a"}, {"name": "c"}]}})
    folder = SweepFolder(tmp_path / "sweep")
    folder.write(spec, [])
    assert folder.read_spec() == spec
    assert read_spec(str(folder.path)) == spec
    assert read_spec(str(folder.path), ["seeds=[5]"]) == dataclasses.replace(spec, seeds=[5])
    with pytest.raises(UserError, match="cannot be changed, it is nano"):
        read_spec(str(folder.path), ["scale=paper"])


def test_library_contains_every_documented_sweep():
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
def test_library_sweep_has_a_question_and_sources(name, scale):
    spec = read_spec(name, [f"scale={scale}"])
    assert spec.question.endswith("?")
    assert spec.paper
    assert all(arm.source for arm in spec.all_arms())
    assert (spec.budget is None) == bool(spec.no_budget)
    assert len(spec.seeds) >= 2 or name == "loop_base"  # which makes a model, and compares nothing
    text = (sweeps_dir() / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# "), "the file starts with a comment that explains it"


@pytest.mark.parametrize("path", sorted((sweeps_dir() / "real").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_sweep_of_a_converted_checkpoint_is_read(path):
    spec = read_spec(str(path))
    assert spec.question.endswith("?")
    assert all(arm.source for arm in spec.all_arms())


YAML = """
question: Which?
baseline: {baseline}
scale: null
metrics: [{{name: val/nll_bound, stage: pretrain}}]
stages: [{{name: pretrain, command: pretrain}}]
arms: [{{name: {baseline}}}, {{name: b, overrides: {{pretrain: [seed=1]}}}}]
"""


@pytest.fixture
def with_baseline(tmp_path):
    """Write a sweep whose baseline is named as written."""

    def write(written):
        file = tmp_path / "mine.yaml"
        file.write_text(YAML.format(baseline=written), encoding="utf-8")
        return str(file)

    return write


@pytest.mark.parametrize(("written", "name"), [("on", "on"), ("off", "off"), ("'1e-3'", "1e-3"), ("'0.10'", "0.10")])
def test_names_of_arms_stay_as_they_are_written(with_baseline, tmp_path, written, name):
    spec = read_spec(with_baseline(written))
    assert [arm.name for arm in spec.all_arms()] == [name, "b"]
    SweepFolder(tmp_path / "sweep").write(spec, [])
    assert SweepFolder(tmp_path / "sweep").read_spec() == spec


@pytest.mark.parametrize(("written", "seen"), [("true", "True"), ("1e-3", "0.001"), ("0.10", "0.1"), ("3", "3")])
def test_names_that_yaml_would_change_are_rejected(with_baseline, written, seen):
    with pytest.raises(UserError, match=rf"baseline: {seen} is not a text: write it in quotes, such as '{seen}'"):
        read_spec(with_baseline(written))


def test_numbers_in_lists_and_as_keys_of_a_sweep_are_rejected(read):
    with pytest.raises(UserError, match=r"primary_contrasts\[0\]: 2 is not a text"):
        read(primary_contrasts=[2])
    with pytest.raises(UserError, match=r"axes, key: 1 is not a text"):
        read(axes={1: [{"name": "x"}]})


def test_a_number_on_the_command_line_is_the_name_of_an_arm(with_baseline):
    assert read_spec(with_baseline("'3'"), ["baseline=3"]).baseline == "3"

"""Loading configs from overrides and files, and the one-line errors of invalid ones."""

import dataclasses
import shutil

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.config import SCHEMAS, PretrainConfig, check_overrides, load, load_file
from lit_illada.errors import UserError
from lit_illada.model.config import ModelConfig
from lit_illada.objective.config import DiffusionObjectiveConfig
from lit_illada.objective.mask_ratio import MASK_RATIOS
from lit_illada.runtime.paths import conf_dir
from lit_illada.schema import dump, from_tree, to_tree, with_defaults
from lit_illada.training.config.schedule import Cosine


@pytest.mark.parametrize("command", SCHEMAS)
def test_default_config_of_every_command_survives_a_round_trip(command):
    config = load(command)
    assert from_tree(SCHEMAS[command], yaml.safe_load(dump(config))) == config


@pytest.mark.parametrize("name", sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml")))
def test_every_experiment_loads(name):
    required = ["init_from=null"] if name == "adapt" else []
    assert load("pretrain", [f"experiment={name}", *required])


@pytest.mark.parametrize("group", ["model", "data", "objective", "optim", "trainer"])
def test_every_file_of_a_group_loads(group):
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        extra = ["model.is_causal=true"] if path.stem == "autoregressive" else []
        assert load("pretrain", [f"{group}={path.stem}", *extra])


def test_overrides_reach_the_dataclasses():
    config = load("pretrain", ["model.num_hidden_layers=8", "objective/mask_ratio=cosine", "trainer.ema_decay=0.99"])
    assert config.model.num_hidden_layers == 8
    assert type(config.objective.mask_ratio) is MASK_RATIOS["cosine"]
    assert config.trainer.ema_decay == 0.99
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_layers=3", "did you mean 'model.num_hidden_layers'"),
        ("modle.hidden_size=3", "did you mean 'model"),
        ("trainer.max_step=3", "did you mean 'trainer.max_steps'"),
        ("+model.dmodel=3", "unknown config key 'model.dmodel'"),
        ("++trainer.steps=3", "unknown config key 'trainer.steps'"),
        ("model=nanoo", "nano"),
        ("objective/mask_ratio=cosin", "cosine"),
        ("trainer.max_steps=many", "trainer.max_steps: 'many' is not a whole number"),
        ("trainer.max_steps=1.5", "trainer.max_steps: 1.5 is not a whole number"),
        ("trainer.compile=perhaps", "trainer.compile: 'perhaps' is not true or false"),
        ("optim.gradient_clip_norm=big", "optim.gradient_clip_norm: 'big' is not a number or null"),
        ("trainer.precision=bf16", "did you mean 'bf16-mixed'"),
        ("objective.mask_draw=exactk", "did you mean 'exact_k'"),
        ("data.row_length=0", "data.row_length is 0"),
        ("trainer.batch_rows=33", "no multiple of micro_batch_rows"),
        ("model.num_key_value_heads=3", "must divide model.num_attention_heads"),
        ("model.is_causal=true", "needs model.is_causal=false"),
        ("data.row_length=100000", "longer than model.max_position_embeddings"),
        ("model=null", "'model=null' names no file: allowed are 100m, "),
        ("trainer=5", "'trainer=5' names no file: allowed are default"),
        ("trainer={max_step: 1}", "did you mean 'trainer.max_steps'"),
        ("trainer.max_steps=${steps}", "steps"),
        ("hydra.run.dir=x", "Hydra only composes the config here"),
        ("+hydra.verbose=true", "Hydra only composes the config here"),
        ("hydra/launcher=x", "Hydra only composes the config here"),
        ("seed=-1", "seed is -1; it must lie between 0 and 2**32 - 1"),
        ("seed=4294967296", "seed is 4294967296"),
        ("trainer.max_steps=100", "optim.schedule.warmup_steps is 100, not below trainer.max_steps=100"),
        ("optim.optimizer.eps=0", "optim.optimizer.eps is 0.0: it must be above 0"),
        ("model", "model"),
        ("=3", "=3"),
    ],
)
def test_invalid_override_is_reported_in_one_line_with_a_hint(override, message):
    with pytest.raises(UserError) as caught:
        load("pretrain", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_generation_longer_than_the_model_is_refused_only_if_texts_are_generated():
    sizes = ["model.max_position_embeddings=256", "samples.generation.max_new_tokens=257"]
    assert load("pretrain", sizes)
    with pytest.raises(UserError, match=r"samples\.generation\.max_new_tokens is 257, more than model\.max_pos"):
        load("pretrain", [*sizes, "samples.prompts=[a]"])
    sizes = ["evaluation.generation.max_new_tokens=1025"]
    with pytest.raises(UserError, match=r"evaluation\.generation\.max_new_tokens is 1025, more than model\.max_pos"):
        load("sft", sizes)
    assert load("sft", [*sizes, "evaluation.num_examples=0"])


def test_warmup_is_compared_with_max_steps_unless_epochs_are_set():
    with pytest.raises(UserError, match=r"warmup_steps is 50, not below trainer\.max_steps=50"):
        load("sft", ["trainer.max_steps=50"])
    assert load("sft", ["trainer.max_steps=50", "epochs=1"])


@pytest.mark.parametrize(
    "override", ["optim=muon", "objective/mask_ratio=cosine", "generation@samples.generation=llada"]
)
def test_saved_config_refuses_files_of_a_group(tmp_path, override):
    file = tmp_path / "config.yaml"
    file.write_text(dump(load("pretrain")), encoding="utf-8")
    with pytest.raises(UserError, match="on a saved config only values can be set"):
        load_file("pretrain", file, [override])


def test_choice_without_or_with_unknown_name_is_refused():
    with pytest.raises(UserError, match="objective needs a name"):
        from_tree(PretrainConfig, {"objective": {"mask_draw": "exact_k"}})
    with pytest.raises(UserError, match="did you mean 'beta'"):
        from_tree(PretrainConfig, {"objective": {"name": "diffusion", "mask_ratio": {"name": "bet"}}})


@pytest.mark.parametrize("method", ["muon_small", "llada_sft", "illada_sft"])
def test_another_choice_drops_the_settings_that_a_file_made_for_its_own(method):
    preset = load("pretrain", [f"optim={method}"]).optim.schedule
    schedule = load("pretrain", [f"optim={method}", "optim/schedule=cosine"]).optim.schedule
    assert isinstance(schedule, Cosine)
    assert (schedule.warmup_steps, schedule.final_factor) == (preset.warmup_steps, preset.final_factor)
    assert load("pretrain", [f"optim={method}", "optim/schedule=wsd"]).optim.schedule == preset


def test_another_source_replaces_that_of_an_experiment():
    tree = check_overrides(
        "sft", ["experiment=sft/demo", "sft_data/source=messages", "sft_data.source.paths=[a.jsonl]"], is_whole=False
    )
    assert tree["sft_data"]["source"] == {"name": "messages", "paths": ["a.jsonl"], "validation_paths": []}


def test_an_unknown_setting_of_a_file_is_refused_beside_another_choice(tmp_path, monkeypatch):
    shutil.copytree(conf_dir(), tmp_path / "conf")
    for module in ("config_files", "config.loading"):
        monkeypatch.setattr(f"lit_illada.{module}.conf_dir", lambda: tmp_path / "conf")
    preset = tmp_path / "conf/optim/muon_small.yaml"
    preset.write_text(preset.read_text().replace("decay_fraction", "decay_fractoin"))
    with pytest.raises(UserError, match=r"unknown config key 'optim\.schedule\.decay_fractoin'"):
        load("pretrain", ["optim=muon_small", "optim/schedule=cosine"])


def test_field_of_another_choice_is_refused():
    with pytest.raises(UserError, match=r"unknown config key 'objective\.weighting\.gamma'"):
        from_tree(DiffusionObjectiveConfig, {"weighting": {"name": "elbo", "gamma": 3}}, "objective.")


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (
            "{term: correct, partial: true}",
            r"terms\[0\]\.partial is a setting of correct: write term: {name: correct, par",
        ),
        ("{term: correct, wieght: 2}", r"did you mean 'alignment\.reward\.terms\[0\]\.weight'"),
        ("{term: {name: correct, partal: true}}", r"did you mean 'alignment\.reward\.terms\[0\]\.term\.partial'"),
    ],
)
def test_error_names_the_keys_of_an_element_of_a_list(term, message):
    with pytest.raises(UserError, match=message):
        load("align", [f"alignment.reward.terms=[{term}]"])


@given(st.sampled_from(sorted(MASK_RATIOS)), st.integers(0, 2**31), st.booleans())
def test_to_tree_and_from_tree_are_inverse(name, seed, is_tied):
    tree = to_tree(PretrainConfig(seed=seed))
    tree["model"]["tie_word_embeddings"] = is_tied
    tree["objective"]["mask_ratio"] = {"name": name}
    tree["objective"]["importance_corrected"] = name == "variance_optimal"
    config = from_tree(PretrainConfig, tree)
    assert from_tree(PretrainConfig, to_tree(config)) == config


def test_saved_config_loads_with_overrides_and_refuses_unknown_keys(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(dump(load("pretrain", ["seed=5"])), encoding="utf-8")
    assert load_file("pretrain", file).seed == 5
    assert load_file("pretrain", file, ["trainer.max_steps=700"]).trainer.max_steps == 700
    with pytest.raises(UserError, match=r"did you mean 'trainer\.max_steps'"):
        load_file("pretrain", file, ["trainer.max_stepz=7"])
    with pytest.raises(UserError, match="write KEY=VALUE"):
        load_file("pretrain", file, ["seed"])


@pytest.mark.parametrize("content", ["- a list", "a: [unclosed", "just text"])
def test_error_names_the_damaged_saved_config(tmp_path, content):
    file = tmp_path / "config.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_file("pretrain", file)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer=$(touch x)", r"'trainer=\$\(touch x\)' is no KEY=VALUE"),
        ("model.hidden_size=a=b", r"'model\.hidden_size=a=b' is no KEY=VALUE .* quote"),
        ("objective/mask_ratio=[]", r"names no file of the group objective/mask_ratio: allowed are band"),
        (f"optim/schedule={'9' * 4000}", r"optim/schedule=9"),
        (f"trainer.max_steps={'9' * 5000}", r"trainer\.max_steps=9"),
        (f"objective={'[' * 500}{']' * 500}", r"objective=\[\["),
    ],
)
def test_error_names_the_override_that_cannot_be_composed(override, message):
    with pytest.raises(UserError, match=message):
        load("pretrain", [override])


def test_file_may_omit_defaults_of_the_dataclass():
    tree = {"objective": {"name": "diffusion", "mask_ratio": "cosine"}, "model": {"hidden_size": 128}}
    full = with_defaults(PretrainConfig, tree)
    assert full["model"] == to_tree(ModelConfig(hidden_size=128))
    assert full["objective"]["mask_ratio"] == {"name": "cosine", **to_tree(MASK_RATIOS["cosine"]())}
    assert from_tree(PretrainConfig, full) == from_tree(PretrainConfig, tree)


def test_filling_defaults_leaves_unknown_keys_for_validation():
    assert with_defaults(PretrainConfig, {"modle": 1, "model": 3})["modle"] == 1
    with pytest.raises(UserError, match="modle"):
        from_tree(PretrainConfig, with_defaults(PretrainConfig, {"modle": 1}))


def test_saved_config_without_a_section_is_refused(tmp_path):
    file = tmp_path / "config.yaml"
    text = dump(load("pretrain"))
    for content in ("{}", text[: text.index("\ntrainer:") + 1]):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=r"config\.yaml: lacks .*trainer"):
            load_file("pretrain", file, ["trainer.max_steps=7"])

from dataclasses import fields, replace

import pytest
import yaml

from lit_illada.config import load
from lit_illada.errors import UserError
from lit_illada.generation.cache import CACHES
from lit_illada.generation.commit_rules import COMMIT_RULES, COMMIT_SCHEDULES, DreamSchedule, Threshold
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.loop_control.early_exit import EARLY_EXITS
from lit_illada.generation.loop_control.loop_response import LOOP_RESPONSES
from lit_illada.generation.loop_control.repetition import REPETITIONS
from lit_illada.generation.loop_control.thinking_stop import THINKING_STOPS
from lit_illada.generation.remasking import REMASK_RULES, ReMDMCap
from lit_illada.runtime.paths import conf_dir
from lit_illada.schema import from_tree

FOLDER = conf_dir() / "generation"
TABLES = {
    "commit_rule": COMMIT_RULES,
    "commit_schedule": COMMIT_SCHEDULES,
    "remask": REMASK_RULES,
    "cache": CACHES,
    "thinking_stop": THINKING_STOPS,
    "repetition": REPETITIONS,
    "on_loop": LOOP_RESPONSES,
    "early_exit": EARLY_EXITS,
}
PRESETS = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_has_only_known_fields_in_their_order_and_composes(path):
    tree = yaml.safe_load(path.read_text())
    groups = [name for entry in tree.pop("defaults") if entry != "_self_" for name in entry]
    names = [field.name for field in fields(GenerationConfig)]
    assert [*tree, *groups] == [name for name in names if name in tree or name in groups]
    assert isinstance(load("generate", [f"generation={path.stem}"]).generation, GenerationConfig)


def test_default_preset_is_the_default_config():
    assert load("generate").generation == GenerationConfig()


@pytest.mark.parametrize("group", TABLES)
def test_every_choice_has_a_file_with_known_fields_and_its_source(group):
    assert {path.stem for path in (FOLDER / group).glob("*.yaml")} == set(TABLES[group])
    for name, cls in TABLES[group].items():
        text = (FOLDER / group / f"{name}.yaml").read_text()
        tree = yaml.safe_load(text)
        assert text.startswith("# source: ")
        assert "\n# changes: " in text
        assert tree.pop("name") == name
        assert set(tree) <= {field.name for field in fields(cls)}
        assert from_tree(cls, tree) == cls()
        assert type(getattr(load("generate", [f"generation/{group}={name}"]).generation, group)) is cls


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_length": 0}, "generation.block_length is 0: it must be 1 or more"),
        ({"max_new_tokens": -1}, "generation.max_new_tokens is -1"),
        ({"num_steps": 33}, "num_steps is 33: it must be at most generation.block_length, which is 32"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_steps": None}, "num_steps is null and generation.tokens_per_step is null: give one"),
        ({"tokens_per_step": 2}, "num_steps is 32 and generation.tokens_per_step is 2: give one"),
        ({"num_steps": None, "tokens_per_step": 33}, "tokens_per_step is 33: it must be at most"),
        (
            {"commit_rule": Threshold(), "commit_schedule": DreamSchedule()},
            "commit_schedule is 'dream', but commit_rule 'threshold' determines .* random, low_confidence, margin",
        ),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p is 0.0"),
        ({"top_p": 0.5}, "top_p is 0.5, which has no effect at generation.temperature=0"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"min_new_tokens": 129}, "min_new_tokens is 129: it must be 0 or more and at most"),
    ],
)
def test_invalid_settings_are_rejected_with_value_and_bound(changes, message):
    with pytest.raises(UserError, match=message):
        replace(GenerationConfig(), **changes)


def test_more_steps_than_tokens_are_allowed_with_remasking():
    assert replace(GenerationConfig(), num_steps=64, remask=ReMDMCap()).steps_for(32) == 64


def test_a_budget_below_the_block_length_shortens_block_and_steps():
    assert load("generate", ["generation.max_new_tokens=8"]).generation.steps_for(8) == 8
    assert GenerationConfig(max_new_tokens=8, num_steps=4).steps_for(8) == 4
    assert GenerationConfig(max_new_tokens=8, num_steps=None, tokens_per_step=16).steps_for(8) == 1
    assert GenerationConfig(max_new_tokens=8, remask=ReMDMCap()).steps_for(8) == 32


def test_samples_of_a_run_accept_any_preset_and_choice():
    overrides = ["generation@samples.generation=llada", "generation/cache@samples.generation.cache=dual"]
    generation = load("pretrain", overrides).samples.generation
    assert generation.canvas == "fixed"
    assert isinstance(generation.cache, CACHES["dual"])


def test_evaluation_and_scoring_accept_any_mitigation():
    overrides = ["generation/thinking_stop@evaluation.generation.thinking_stop=hard"]
    assert load("sft", overrides).evaluation.generation.thinking_stop == THINKING_STOPS["hard"]()
    assert load("score", ["generation/on_loop=remask_span"]).generation.on_loop == LOOP_RESPONSES["remask_span"]()

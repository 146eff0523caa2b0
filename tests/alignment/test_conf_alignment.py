"""The files of conf/alignment: one per table row, with a source; presets with the settings of their papers."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml

from lit_illada.alignment.advantages import ADVANTAGES
from lit_illada.alignment.config import AlignmentConfig, Normaliser
from lit_illada.alignment.estimators import ESTIMATORS, Elbo, EuboMix
from lit_illada.alignment.forms import FORMS, Anchor, Clip, Dpo, Reinforce
from lit_illada.alignment.levels import Level
from lit_illada.alignment.regularisers import REGULARISERS, KlRef
from lit_illada.config import load
from lit_illada.errors import UserError
from lit_illada.runtime.paths import conf_dir
from lit_illada.schema import from_tree, to_tree

CONF = Path(conf_dir()) / "alignment"
TABLES = {"estimator": ESTIMATORS, "form": FORMS, "advantage": ADVANTAGES, "regulariser": REGULARISERS}
CHOICES = [(group, path) for group in TABLES for path in sorted((CONF / group).glob("*.yaml"))]
PRESETS = sorted(CONF.glob("*.yaml"))
WANTED = "d1 coupled wd1 spg gdpo espo bgpo step_merge cj_grpo left_to_right vrpo".split()


PAIRS = ["preferences=pairs.jsonl"]


@cache
def preset(name):
    return load("align", [f"alignment={name}", *(PAIRS if name == "vrpo" else [])]).alignment


@pytest.mark.parametrize("group", TABLES)
def test_table_rows_and_files_correspond(group):
    names = {path.stem: yaml.safe_load(path.read_text())["name"] for path in (CONF / group).glob("*.yaml")}
    assert names == {name: name for name in TABLES[group]}


@pytest.mark.parametrize(("group", "path"), CHOICES, ids=lambda x: getattr(x, "stem", x))
def test_choice_composes(group, path):
    tree = yaml.safe_load(path.read_text())
    cls = TABLES[group][tree.pop("name")]
    assert isinstance(from_tree(cls, tree), cls)


@pytest.mark.parametrize("path", [*(path for _, path in CHOICES), *PRESETS], ids=lambda path: path.stem)
def test_file_states_its_source_and_what_it_changes(path):
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert comments[0].startswith("# source: ")
    assert any(line.startswith("# changes: ") for line in comments)


def test_every_method_is_a_preset_that_cites_its_paper():
    assert {path.stem for path in PRESETS} == set(WANTED)
    assert all("arXiv" in path.read_text().splitlines()[0] for path in PRESETS)


@pytest.mark.parametrize("name", WANTED)
def test_preset_composes_and_survives_a_round_trip(name):
    config = preset(name)
    assert from_tree(AlignmentConfig, to_tree(config)) == config


def test_settings_of_the_papers():
    assert preset("d1").form == Clip(0.5, 0.5)
    assert preset("d1").regulariser == KlRef(coefficient=0.04)
    assert preset("spg").estimator == EuboMix(block_length=32, num_draws=2, exponent=1.5, mix=0.5)
    assert type(preset("spg").form) is Reinforce
    assert preset("espo").level is Level.SEQUENCE_MEAN
    assert preset("bgpo").estimator == Elbo(num_draws=16)
    assert preset("vrpo").form == Dpo(beta=0.2)
    assert preset("d1").normaliser is Normaliser.UNITS


SCORINGS = {
    "d1": (12, 11, 12),
    "coupled": (2, 1, 2),
    "wd1": (8, 0, 0),
    "spg": (4, 0, 0),
    "gdpo": (1, 0, 0),
    "espo": (8, 0, 1),
    "bgpo": (1, 0, 0),
    "step_merge": (8, 0, 1),
    "cj_grpo": (12, 0, 1),
    "left_to_right": (1, 0, 0),
    "vrpo": (1, 0, 1),
}


@pytest.mark.parametrize("name", WANTED)
def test_scorings_per_rollout(name):
    """Frozen policies are scored once under fixed masks, and once per update under fresh ones."""
    assert tuple(preset(name).num_scorings().values()) == SCORINGS[name]
    assert preset(name).needs(Anchor.REF) == (SCORINGS[name][2] > 0)


def test_masks_are_those_of_the_rollout_or_of_each_update():
    fixed, fresh = preset("espo"), preset("d1")
    assert [fixed.mask_number(3, update) for update in range(8)] == [24] * 8
    numbers = [fresh.mask_number(rollout, update) for rollout in range(3) for update in range(12)]
    assert len(set(numbers)) == 36


TERMS = "alignment.reward.terms="
REMASKING = ["generation/remask=remdm_cap"]
BAD = {
    "alignment.level is 'token', but form 'dpo'": ["alignment=vrpo", "alignment.level=token", *PAIRS],
    "includes its regulariser": ["alignment=vrpo", "alignment/regulariser=kl_ref", *PAIRS],
    "alignment.group_size is 4": ["alignment=vrpo", "alignment.group_size=4", *PAIRS],
    "upper bound of eubo_mix": ["alignment=spg", "alignment.per_draw=true"],
    "alignment.masked_prompt is 1": ["alignment.masked_prompt=1.0"],
    "alignment.updates is 0": ["alignment.updates=0"],
    "alignment.form.low is 1": ["alignment.form.low=1.0"],
    "alignment.estimator.num_pairs is 0": ["alignment.estimator.num_pairs=0"],
    "reward.time_limit_s is 0": ["alignment.reward.time_limit_s=0"],
    "terms.weight is -0.5: it must be 0 or more": [TERMS + "[{term: correct}, {term: loop, weight: -0.5}]"],
    r"terms.weight is \[0.0, 0.0\]: it must be above 0": [
        TERMS + "[{term: loop, weight: 0}, {term: correct, weight: 0}]"
    ],
    "advantage.positive, negative is": [
        "alignment=wd1",
        "alignment.advantage.positive=0",
        "alignment.advantage.negative=0",
    ],
    "reference_every is 4, but neither form 'linear_bound' nor": ["alignment=bgpo", "alignment.reference_every=4"],
    "estimator.block_length is 32, but the rollout writes blocks of generation.block_length=16": [
        "alignment=spg",
        "generation.block_length=16",
        "generation.num_steps=8",
    ],
    "estimator.block_length is 8, but": ["alignment/estimator=block_elbo", "alignment.estimator.block_length=8"],
    "alignment.level is 'step', but generation.remask": ["alignment.level=step", *REMASKING],
    "alignment.regulariser.level is 'step', but generation.remask": ["alignment.regulariser.level=step", *REMASKING],
    "generation.temperature is 0.0: it must be above 0 with alignment.temperature_in_score": [
        "alignment=vrpo",
        "alignment.temperature_in_score=true",
        "generation.temperature=0",
        *PAIRS,
    ],
    "generation.top_p is 0.9: it must be 1 with": ["alignment=left_to_right", "generation.top_p=0.9"],
    "generation.guidance_scale is 1.5: it must be 0": ["alignment=left_to_right", "generation.guidance_scale=1.5"],
    "generation.min_new_tokens is 4: it must be 0 with": ["alignment=left_to_right", "generation.min_new_tokens=4"],
    "generation.repetition is 'penalty': it must be 'none' with": [
        "alignment=left_to_right",
        "generation/repetition=penalty",
    ],
    "generation.on_loop is 'temperature_kick': it must be 'none' with": [
        "alignment=left_to_right",
        "generation/on_loop=temperature_kick",
    ],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_settings_are_named(message):
    with pytest.raises(UserError, match=message):
        load("align", BAD[message])


def test_another_regulariser_drops_the_period_of_the_reference():
    config = load("align", ["alignment=coupled", "alignment/regulariser=none"]).alignment
    assert (preset("coupled").reference_every, config.reference_every) == (32, None)
    same = load("align", ["alignment=coupled", "alignment/regulariser=kl_ref"]).alignment
    assert same.reference_every == 32


def test_blocks_that_cannot_differ_from_the_rollouts_are_allowed():
    short = ["generation.max_new_tokens=16", "generation.num_steps=16"]  # one block, of either length
    load("align", ["alignment=spg", *short, "generation.block_length=24"])
    whole = ["alignment=spg", "alignment.estimator.block_length=null", "generation.block_length=64"]
    assert load("align", whole).alignment.estimator.block_length is None
    load("align", ["alignment=vrpo", "alignment/estimator=block_elbo", "alignment.estimator.block_length=8", *PAIRS])


def test_steps_of_no_regulariser_need_no_trace():
    load("align", ["alignment=gdpo", "alignment.regulariser.level=step", *REMASKING])


def test_steps_of_the_rollout_can_be_scored_unless_a_setting_masks_committed_tokens_again():
    needing = ["alignment=cj_grpo", "alignment.level=step"]
    config = load("align", [*needing, "generation/on_loop=temperature_kick", "generation/repetition=dry"])
    assert config.generation.remasking == []
    remasking = ["generation/remask=remdm_cap", "generation/on_loop=remask_span", "generation/early_exit=settled"]
    config = load("align", remasking)
    assert config.generation.remasking == ["remask", "early_exit", "on_loop"]


def test_the_rollout_that_left_to_right_is_exact_for_can_be_set():
    rollout = ["generation.canvas=fixed", "generation.block_length=1", "generation.num_steps=1"]
    config = load("align", ["alignment=left_to_right", *rollout])
    assert config.generation.steps_for(1) == 1
    assert config.alignment.recompute_views


def test_rewards_are_a_list_of_weighted_terms():
    terms = "[{term: correct}, {term: {name: loop, coverage: true}, weight: 0.5}]"
    reward = load("align", [f"alignment.reward.terms={terms}"]).alignment.reward
    assert reward.names == ["correct", "loop"]
    assert reward.terms[1].weight == 0.5
    assert reward.terms[1].term.coverage


@pytest.mark.parametrize("experiment", ["demo", "recheck"])
@pytest.mark.parametrize("name", WANTED)
def test_a_method_replaces_that_of_an_experiment_and_leaves_its_reward(name, experiment):
    chosen, own = f"experiment=align/{experiment}", preset(name)
    others = PAIRS if name == "vrpo" else []
    if name == "spg":  # scores the blocks of the rollout
        others, own = ["alignment.estimator.block_length=16"], replace(own, estimator=EuboMix(block_length=16))
    config = load("align", [chosen, f"alignment={name}", *others])
    assert config.alignment == replace(own, reward=load("align", [chosen]).alignment.reward)


def test_a_part_of_a_method_replaces_that_of_an_experiment_alone():
    config = load("align", ["experiment=align/demo", "alignment/estimator=elbo"]).alignment
    demo = load("align", ["experiment=align/demo"]).alignment
    assert config == replace(demo, estimator=Elbo())
    both = load("align", ["experiment=align/demo", "alignment=d1", "alignment/estimator=elbo"]).alignment
    assert both == replace(preset("d1"), estimator=Elbo())

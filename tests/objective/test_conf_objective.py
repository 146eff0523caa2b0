"""The files of conf/objective: one per table row, with known fields, a source and what it changes."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from lit_illada.config import load
from lit_illada.objective.config import OBJECTIVES
from lit_illada.objective.mask_ratio import MASK_RATIOS
from lit_illada.objective.token_weight import TOKEN_WEIGHTS
from lit_illada.objective.weighting import WEIGHTINGS
from lit_illada.runtime.paths import conf_dir
from lit_illada.schema import from_tree

CONF = Path(conf_dir()) / "objective"
TABLES = {"mask_ratio": MASK_RATIOS, "weighting": WEIGHTINGS, "token_weight": TOKEN_WEIGHTS}
CHOICES = [(group, path) for group in TABLES for path in sorted((CONF / group).glob("*.yaml"))]
PRESETS = sorted(CONF.glob("*.yaml"))


@pytest.mark.parametrize("group", TABLES)
def test_table_rows_and_files_correspond(group):
    names = {path.stem: yaml.safe_load(path.read_text())["name"] for path in (CONF / group).glob("*.yaml")}
    assert set(TABLES[group]) <= set(names)
    assert set(names.values()) <= set(TABLES[group])
    assert all(names[row] == row for row in TABLES[group])


@pytest.mark.parametrize(("group", "path"), CHOICES, ids=lambda x: getattr(x, "stem", x))
def test_choice_has_only_fields_of_its_class(group, path):
    tree = yaml.safe_load(path.read_text())
    cls = TABLES[group][tree.pop("name")]
    assert set(tree) <= {field.name for field in dataclasses.fields(cls)}
    from_tree(cls, tree)


@pytest.mark.parametrize("path", [*(path for _, path in CHOICES), *PRESETS], ids=lambda path: path.stem)
def test_file_states_its_source_and_what_it_changes(path):
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert comments[0].startswith("# source: ")
    assert any(line.startswith("# changes: ") for line in comments)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_has_only_known_fields_and_composes(path):
    tree = yaml.safe_load(path.read_text())
    groups = {name for entry in tree.pop("defaults", []) if entry != "_self_" for name in entry}
    cls = OBJECTIVES[tree.pop("name")]
    assert set(tree) | groups <= {field.name for field in dataclasses.fields(cls)}
    is_causal = str(path.stem == "autoregressive").lower()
    overrides = [f"objective={path.stem}", f"model.is_causal={is_causal}"]
    assert isinstance(load("pretrain", overrides).objective, cls)

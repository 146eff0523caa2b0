"""conf/sft_data has one file per choice with known fields, and presets that compose."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from lit_illada.config import load
from lit_illada.data.sft.config import ROWS, SFT_SOURCES, TEMPLATES, SFTDataConfig
from lit_illada.data.shortening import SHORTENINGS
from lit_illada.runtime.paths import conf_dir
from lit_illada.schema import from_tree

CONF = Path(conf_dir()) / "sft_data"
TABLES = {"source": SFT_SOURCES, "template": TEMPLATES, "rows": ROWS, "rows/shortening": SHORTENINGS}
CHOICES = [(group, path) for group in TABLES for path in sorted((CONF / group).glob("*.yaml"))]
PRESETS = sorted(CONF.glob("*.yaml"))


def fields_in(tree):
    """Return the keys of a file, including those of its defaults list."""
    groups = {name for entry in tree.pop("defaults", []) if entry != "_self_" for name in entry}
    return set(tree) | groups


@pytest.mark.parametrize("group", TABLES)
def test_every_choice_has_a_yaml_file(group):
    assert {yaml.safe_load(path.read_text())["name"] for path in (CONF / group).glob("*.yaml")} == set(TABLES[group])


@pytest.mark.parametrize(("group", "path"), CHOICES, ids=lambda x: getattr(x, "stem", x))
def test_choice_has_only_fields_of_its_class_and_loads(group, path):
    tree = yaml.safe_load(path.read_text())
    cls = TABLES[group][tree.pop("name")]
    assert fields_in(tree) <= {field.name for field in dataclasses.fields(cls)}
    assert isinstance(from_tree(cls, tree), cls)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_has_only_known_fields_and_composes(path):
    assert fields_in(yaml.safe_load(path.read_text())) <= {field.name for field in dataclasses.fields(SFTDataConfig)}
    assert isinstance(load("examples", [f"sft_data={path.stem}"]).sft_data.source, SFT_SOURCES[path.stem])


@pytest.mark.parametrize("rows", sorted(path.stem for path in (CONF / "rows").glob("*.yaml")))
def test_rows_compose(rows):
    assert isinstance(load("examples", [f"sft_data/rows={rows}"]).sft_data.rows, tuple(ROWS.values()))


def test_default_files_compose_the_default_config():
    assert load("examples").sft_data == SFTDataConfig()

from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from lit_illada.errors import UserError
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.selection import COMMIT_RULES

PRESETS = sorted((Path(__file__).parents[2] / "conf" / "generation").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_names_every_field_and_constructs(path):
    values = yaml.safe_load(path.read_text())
    assert list(values) == [field.name for field in fields(GenerationConfig)]
    rule = values.pop("commit_rule")
    GenerationConfig(**values, commit_rule=COMMIT_RULES[rule.pop("name")](**rule))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_length": 0}, "generation.block_length is 0: it must be 1 or more"),
        ({"max_new_tokens": -1}, "generation.max_new_tokens is -1"),
        ({"max_new_tokens": 16}, "block_length is 32: it must be at most generation.max_new_tokens, which is 16"),
        ({"num_steps": 33}, "num_steps is 33: it must be at most generation.block_length, which is 32"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_impossible_settings_are_refused_with_value_and_bound(changes, message):
    with pytest.raises(UserError, match=message):
        replace(GenerationConfig(), **changes)

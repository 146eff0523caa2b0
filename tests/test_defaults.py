"""Defaults are written once, in the dataclasses: the files of conf/ list only what differs from them."""

from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from lit_illada.config import SCHEMAS, PretrainConfig, SFTConfig, load
from lit_illada.config_files import compose_files
from lit_illada.runtime.paths import conf_dir
from lit_illada.schema import from_tree, with_defaults

FILES = sorted(path.relative_to(conf_dir()) for path in conf_dir().rglob("*.yaml"))
# of groups; else pretrain
COMMANDS = {
    "adapter": "sft",
    "alignment": "align",
    "sft_data": "sft",
    "generation": "generate",
    "score": "score",
    "task": "align",
}


def repeated_defaults(file: Path, added: dict[str, Any] | None = None) -> list[str]:
    """Return the keys and values of a file of conf/ without which the composed config would be the same.

    added: further content of the file.
    """
    command, overrides, where = _place(file)
    own = (yaml.safe_load((conf_dir() / file).read_text(encoding="utf-8")) or {}) | (added or {})
    composed = compose_files(command, overrides)
    if added:
        added_tree = reduce(lambda tree, key: {key: tree}, reversed(where), added)
        composed = OmegaConf.to_container(OmegaConf.merge(composed, added_tree))
    whole = with_defaults(SCHEMAS[command], composed)

    def repeated(node: dict[str, Any], where: list[str]) -> Iterator[str]:
        for key, value in node.items():
            path = [*where, key]
            if key == "defaults" or (key == "name" and where):  # `name` chooses the class
                continue
            if with_defaults(SCHEMAS[command], _without(composed, path)) == whole:
                yield f"{'.'.join(path)}: {value}"
            elif isinstance(value, dict):
                yield from repeated(value, path)

    return list(repeated(own, where))


def _place(file: Path) -> tuple[str, list[str], list[str]]:
    """Return the command that composes a file, the override that chooses it, and where its keys lie."""
    group, *rest = file.with_suffix("").parts
    if not rest:
        return group, [], []
    if group == "experiment":
        return rest[0] if len(rest) > 1 else "pretrain", [f"experiment={'/'.join(rest)}"], []
    *folders, name = group, *rest
    return COMMANDS.get(group, "pretrain"), [f"{'/'.join(folders)}={name}"], folders


def _without(tree: dict[str, Any], path: list[str]) -> dict[str, Any]:
    key, *rest = path
    if rest:
        return {**tree, key: _without(tree[key], rest)}
    return {name: child for name, child in tree.items() if name != key}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_file_lists_only_what_differs_from_the_dataclasses(file):
    repeated = repeated_defaults(file)
    assert not repeated, f"conf/{file} repeats defaults of the dataclasses: {repeated}"


def test_repeated_default_is_named_with_its_value():
    file = Path("sft_data/rows/packed_visible_prompt.yaml")
    assert repeated_defaults(file, {"isolate_examples": True}) == ["sft_data.rows.isolate_examples: True"]
    assert not repeated_defaults(file, {"isolate_examples": False})


def test_composed_config_of_no_choices_is_the_dataclass():
    assert from_tree(PretrainConfig, {}) == PretrainConfig()
    assert load("pretrain").trainer == PretrainConfig().trainer
    assert load("sft").evaluation == SFTConfig().evaluation


def test_partial_section_takes_the_rest_from_the_default_of_its_field():
    tree = with_defaults(SFTConfig, {"sft_data": {"source": {"name": "reasoning", "harder": {"moduli": [10]}}}})
    harder = tree["sft_data"]["source"]["harder"]
    assert harder["moduli"] == [10]
    assert (harder["min_depth"], harder["max_depth"]) == (5, 8)  # the class itself has 1 and 4

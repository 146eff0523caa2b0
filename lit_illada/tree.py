"""How a frozen dataclass becomes plain dicts, lists and scalars, and comes back, every value checked."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from enum import EnumType, StrEnum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lit_illada.choice import choice_name
from lit_illada.errors import UserError, unknown
from lit_illada.runtime.yaml_files import read_yaml

T = TypeVar("T")


def from_tree(schema: type[T], tree: Any, where: str = "") -> T:
    """A frozen dataclass from plain dicts, lists and scalars, every choice resolved by its name."""
    if not isinstance(tree, Mapping):
        raise UserError(f"{where.rstrip('.') or 'a config'} must be a mapping of keys; got {tree!r}")
    hints = get_type_hints(schema)
    items = {item.name: item for item in dataclasses.fields(schema)}  # type: ignore[arg-type]
    values = {}
    for key, child in tree.items():
        path = f"{where}{key}"
        if key not in items:
            raise nearest_key(path, [f"{where}{name}" for name in items])
        cls = hints[key]
        if table := items[key].metadata.get("choices"):
            cls, child = _chosen(table, child, path)
        values[key] = _read(cls, child, path)
    required = (name for name, item in items.items() if _is_required(item))
    if missing := [f"{where}{name}" for name in required if name not in values]:
        raise UserError(f"{where.rstrip('.') or 'a config'} lacks {', '.join(missing)}")
    return schema(**values)


def to_tree(value: Any) -> Any:
    """The inverse of `from_tree`: plain dicts, lists and scalars."""
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, list):
        return [to_tree(item) for item in value]
    if isinstance(value, dict):
        return {key: to_tree(item) for key, item in value.items()}
    if not dataclasses.is_dataclass(value):
        return value
    tree = {}
    for item in dataclasses.fields(value):
        child = getattr(value, item.name)
        tree[item.name] = to_tree(child)
        if table := item.metadata.get("choices"):
            tree[item.name] = {"name": choice_name(table, child), **tree[item.name]}
    return tree


def dump(config: Any) -> str:
    """The config as YAML."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True, width=100)


def _read(hint: Any, value: Any, path: str) -> Any:
    """The value as its hint says, down through lists and mappings that hold dataclasses."""
    parts = get_args(hint)
    if isinstance(hint, UnionType) and any(_holds_nodes(part) for part in parts):
        (hint,) = (part for part in parts if part is not type(None))
        return None if value is None else _read(hint, value, path)
    if dataclasses.is_dataclass(hint):
        return from_tree(hint, value, f"{path}.")  # type: ignore[arg-type]
    if not _holds_nodes(hint):
        return _leaf(hint, value, path)
    if get_origin(hint) is list:
        if not isinstance(value, list):
            raise UserError(f"{path} must be a list; got {value!r}")
        return [_read(parts[0], item, f"{path}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, Mapping):
        raise UserError(f"{path} must be a mapping of names; got {value!r}")
    return {str(key): _read(parts[1], item, f"{path}.{key}") for key, item in value.items()}


def _holds_nodes(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or any(map(_holds_nodes, get_args(hint)))


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _leaf(hint: Any, value: Any, path: str) -> Any:
    """The value as the field's type; OmegaConf decides what converts."""
    if isinstance(hint, EnumType):
        allowed = list(map(str, hint.__members__.values()))
        if value not in allowed:
            raise unknown(path, value, allowed)
        return hint(value)
    try:
        node = OmegaConf.merge(OmegaConf.structured(_leaf_schema(hint)), {"value": value})
        return OmegaConf.to_container(node)["value"]  # type: ignore[index, call-overload]
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {value!r} is not {_type_name(hint)}") from error


@cache
def _leaf_schema(hint: Any) -> type:
    return dataclasses.make_dataclass("Leaf", [("value", hint)])


def _type_name(hint: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return " or ".join(names.get(part, str(part)) for part in parts)


def _chosen(table: Mapping[str, type], child: Any, path: str) -> tuple[type, dict[str, Any]]:
    if isinstance(child, str):
        child = {"name": child}
    if not isinstance(child, Mapping) or "name" not in child:
        raise UserError(f"{path} needs a name: one of {', '.join(table)}")
    if child["name"] not in table:
        raise unknown(path, child["name"], table)
    return table[child["name"]], {key: value for key, value in child.items() if key != "name"}


def nearest_key(key: str, known: list[str]) -> UserError:
    # the last word counts most: `model.num_layers` is near `model.num_hidden_layers`
    parent = key.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == parent] or known
    close = difflib.get_close_matches(key, siblings, n=1, cutoff=0.5) or difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return UserError(f"unknown config key {key!r}: allowed there are {', '.join(siblings)}{hint}")


def read_file(schema: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """The config of a file that composes no others, with `key=value` overrides on top."""
    tree = OmegaConf.create(read_yaml(path))
    for override in overrides:
        if (key := require_assignment(override)) not in keys_of(tree):
            raise nearest_key(key, keys_of(tree))
    merged = OmegaConf.merge(tree, OmegaConf.from_dotlist(list(overrides)))
    return from_tree(schema, OmegaConf.to_container(merged))


def require_assignment(override: str) -> str:
    """The key of a `key=value`."""
    key, found, _ = override.partition("=")
    if not found or not key.strip():
        raise UserError(f"{override!r} is no override: write key=value, such as trainer.max_steps=500")
    return key


def keys_of(node: DictConfig) -> list[str]:
    return list(_walk(node, ""))


def _walk(node: DictConfig, where: str) -> Iterator[str]:
    for key in map(str, node):
        yield f"{where}{key}"
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _walk(child, f"{where}{key}.")

"""Converts frozen dataclasses to plain dicts, lists and scalars, and back with every value checked."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf

from lit_illada.errors import UserError, unknown
from lit_illada.overrides import apply_overrides
from lit_illada.runtime import plugins
from lit_illada.runtime.key_hints import nearest_key
from lit_illada.runtime.leaves import read_leaf, require_texts
from lit_illada.runtime.yaml_files import dump_yaml, read_yaml


def choice(table: Mapping[str, type], default: str) -> Any:
    """Declare a dataclass field that takes an instance of any class in `table`, by default of `table[default]`.

    In YAML it reads `{name: <key of the table>, <the class's own fields>}`. Where the field's type is an abstract class
    or a protocol, the name may also be that of a user's class, see `runtime.plugins`.
    """
    return field(default_factory=lambda: table[default](), metadata={"choices": table})


def choice_name(table: Mapping[str, type], value: object) -> str:
    """Return the table's key for an instance, or the name of a user's class: the inverse of reading its `name`."""
    own = next((name for name, cls in table.items() if cls is type(value)), None)
    name = own if own is not None else plugins.name_of(type(value))
    assert name is not None, f"{type(value)} is not in the table"
    return name


T = TypeVar("T")
REQUIRED = "???"  # OmegaConf's and Hydra's mark of a value that the user must give


def from_tree(schema: type[T], tree: Any, where: str = "", *, is_strict: bool = False) -> T:
    """Build a frozen dataclass from plain dicts, lists and scalars; choices are resolved by name.

    where: prefix of the keys in error messages. is_strict: reject numbers and booleans for texts, which would change
    the spelling of a name in YAML, such as 0.10 to '0.1'; on the command line, name=1 is a text. Raises UserError for
    unknown, missing or mistyped values.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"{where.rstrip('.') or 'a config'} must be a mapping of keys; got {tree!r}")
    hints = _hints(schema)  # type: ignore[arg-type]
    items = {item.name: item for item in dataclasses.fields(schema)}  # type: ignore[arg-type]
    values = {}
    for key, child in tree.items():
        path = f"{where}{key}"
        if key not in items:
            raise _of_a_choice(tree, items, path, key) or nearest_key(path, [f"{where}{name}" for name in items])
        if isinstance(child, str) and child == REQUIRED:
            raise UserError(f"{path} has no value (???), but needs one: set {path}=…")
        cls = hints[key]
        if table := items[key].metadata.get("choices"):
            cls, child = _chosen(table, child, path, cls)
        values[key] = _read(cls, child, path, is_strict)
        if items[key].metadata.get("needs_permission") and values[key]:
            plugins.require_permission(path)
    required = (name for name, item in items.items() if _is_required(item))
    if missing := [f"{where}{name}" for name in required if name not in values]:
        raise UserError(f"{where.rstrip('.') or 'a config'} lacks {', '.join(missing)}")
    return schema(**values)


def _of_a_choice(
    tree: Mapping[str, Any], items: Mapping[str, dataclasses.Field[Any]], path: str, key: str
) -> UserError | None:
    """The error for a setting of a choice that stands beside it, such as {term: correct, partial: true}."""
    for name, item in items.items():
        chosen = tree.get(name)
        cls = item.metadata.get("choices", {}).get(chosen) if isinstance(chosen, str) else None
        if cls is not None and key in {setting.name for setting in dataclasses.fields(cls)}:
            return UserError(f"{path} is a setting of {chosen}: write {name}: {{name: {chosen}, {key}: …}}")
    return None


def with_defaults(schema: type, tree: Any, defaults: Any = None) -> Any:
    """Return the tree with the defaults of missing keys. Unknown keys and wrong values stay unchecked.

    defaults: instance of `schema` whose values are the defaults; None: those of the fields. A partially given section
    takes the rest from the default of its field, which may differ from the defaults of its class.
    """
    if not isinstance(tree, Mapping):
        return tree
    hints, full = _hints(schema), {}
    for item in dataclasses.fields(schema):
        table = item.metadata.get("choices")
        default = _default(item) if defaults is None else getattr(defaults, item.name)
        if item.name in tree:
            full[item.name] = _with_defaults(hints[item.name], table, tree[item.name], default)
        elif default is not dataclasses.MISSING:
            full[item.name] = {"name": choice_name(table, default), **to_tree(default)} if table else to_tree(default)
    return full | {key: value for key, value in tree.items() if key not in full}


def _default(item: dataclasses.Field[Any]) -> Any:
    """Return the default of a field, or `MISSING` if it is required."""
    has_factory = item.default_factory is not dataclasses.MISSING
    return item.default_factory() if has_factory else item.default  # type: ignore[misc, operator]


def _with_defaults(hint: Any, table: Mapping[str, type] | None, child: Any, default: Any) -> Any:
    if table is not None:
        name = child.get("name") if isinstance(child, Mapping) else child
        known = table.get(name) if isinstance(name, str) else None
        cls = _class_of(table, name, "name", hint) if known is None and plugins.is_allowed(name) else known
        if cls is None:
            return child
        fields = {key: value for key, value in child.items() if key != "name"} if isinstance(child, Mapping) else {}
        return {"name": name, **with_defaults(cls, fields, default if type(default) is cls else None)}
    for cls in (hint, *get_args(hint)):
        if dataclasses.is_dataclass(cls):
            return with_defaults(cls, child, default if type(default) is cls else None)  # type: ignore[arg-type]
    return child


def settings_of_other_choices(schema: type, tree: Mapping[str, Any], path: Sequence[str]) -> set[str]:
    """Return the fields of the other classes of the choice at a path that its chosen class lacks.

    Empty where the path leads to no choice, or to a class that is not in its table.
    """
    cls: Any = schema
    others: set[str] = set()
    for key in path:
        item = next((item for item in dataclasses.fields(cls) if item.name == key), None)
        tree = tree[key]
        if item is None or not isinstance(tree, Mapping):
            return set()
        hint = _hints(cls)[key]
        table = item.metadata.get("choices", {})
        cls = table.get(tree.get("name")) or next(filter(dataclasses.is_dataclass, (hint, *get_args(hint))), None)
        if cls is None or (table and cls not in table.values()):
            return set()
        others = {setting.name for other in table.values() for setting in dataclasses.fields(other)}
    return others - {setting.name for setting in dataclasses.fields(cls)} - {"name"}


def check_fields(schema: type, tree: Mapping[str, Any]) -> None:
    """Check each field of a partial tree separately. Raises UserError as `from_tree` does."""
    hints = _hints(schema)
    items = {item.name: item for item in dataclasses.fields(schema)}
    for key, child in tree.items():
        if key not in items:
            raise nearest_key(key, list(items))
        cls = hints[key]
        if table := items[key].metadata.get("choices"):
            cls, child = _chosen(table, child, key, cls)
        _read(cls, child, key)


def to_tree(value: Any) -> Any:
    """Convert a config to plain dicts, lists and scalars: the inverse of `from_tree`."""
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
    """Return the config as YAML."""
    return dump_yaml(to_tree(config))


def _read(hint: Any, value: Any, path: str, is_strict: bool = False) -> Any:
    """Convert a value to its type hint, recursively through lists and mappings of dataclasses."""
    parts = get_args(hint)
    if isinstance(hint, UnionType) and any(_holds_nodes(part) for part in parts):
        (hint,) = (part for part in parts if part is not type(None))
        return None if value is None else _read(hint, value, path, is_strict)
    if dataclasses.is_dataclass(hint):
        return from_tree(hint, value, f"{path}.", is_strict=is_strict)  # type: ignore[arg-type]
    if is_strict:
        require_texts(hint, value, path)
    if not _holds_nodes(hint):
        return read_leaf(hint, value, path)
    if get_origin(hint) is list:
        if not isinstance(value, list):
            raise UserError(f"{path} must be a list; got {value!r}")
        return [_read(parts[0], item, f"{path}[{index}]", is_strict) for index, item in enumerate(value)]
    if not isinstance(value, Mapping):
        raise UserError(f"{path} must be a mapping of names; got {value!r}")
    return {str(key): _read(parts[1], item, f"{path}.{key}", is_strict) for key, item in value.items()}


def _holds_nodes(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or any(map(_holds_nodes, get_args(hint)))


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


@cache
def _hints(schema: type) -> dict[str, Any]:
    """Types of a dataclass's fields, by name: evaluating the annotations takes longer than reading the values."""
    return get_type_hints(schema)


def _chosen(table: Mapping[str, type], child: Any, path: str, base: Any) -> tuple[type, dict[str, Any]]:
    """(class, its fields). base: type of the field."""
    if isinstance(child, str):
        child = {"name": child}
    if not isinstance(child, Mapping) or "name" not in child:
        raise UserError(f"{path} needs a name: one of {', '.join(table)}")
    cls = _class_of(table, child["name"], f"{path}.name", base)
    if cls is None:
        raise unknown(f"{path}.name", child["name"], table)
    return cls, {key: value for key, value in child.items() if key != "name"}


def _class_of(table: Mapping[str, type], name: Any, path: str, base: Any) -> type | None:
    """The class of the table, or the user's class; None for an unknown name."""
    if not isinstance(name, str):
        return None
    if name in table:
        return table[name]
    return plugins.load_class(name, base, path) if plugins.is_open(base) and plugins.is_plugin(name) else None


def read_file(schema: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Load the config of a self-contained YAML file, with `key=value` overrides on top.

    The file lists what differs from the defaults; it may be empty.
    """
    tree = read_yaml(path, may_be_empty=True)
    plugins.allow(tree)
    full = OmegaConf.create(with_defaults(schema, tree))
    return from_tree(schema, apply_overrides(full, overrides))

"""Reads the leaves of a config, scalars and containers of scalars, as the types of their fields."""

import dataclasses
import math
from collections.abc import Mapping
from enum import EnumType
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lit_illada.errors import UserError, unknown

_SINGULARS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


def read_leaf(hint: Any, value: Any, path: str) -> Any:
    """Convert a scalar or a container of scalars to the field's type by OmegaConf's rules."""
    if isinstance(hint, EnumType):
        allowed = list(map(str, hint.__members__.values()))
        if value not in allowed:
            raise unknown(path, value, allowed)
        return hint(value)
    _check_numbers(value, path)
    if _is_of_type(hint, value):
        return list(value) if isinstance(value, list) else value
    try:
        node = OmegaConf.merge(OmegaConf.structured(_leaf_schema(hint)), {"value": value})
        read = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)["value"]  # type: ignore[index, call-overload]
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"{path}: {value!r} is not {type_name(hint)}{_list_hint(hint, value, path)}") from error
    _check_numbers(read, path)
    return read


def require_texts(hint: Any, value: Any, path: str) -> None:
    """Raise UserError for a number or boolean where the hint has a text, also in lists and as a key."""
    parts = get_args(hint)
    if get_origin(hint) is list and isinstance(value, list):
        for index, item in enumerate(value):
            require_texts(parts[0], item, f"{path}[{index}]")
    elif get_origin(hint) is dict and isinstance(value, Mapping):
        for key, item in value.items():
            require_texts(parts[0], key, f"{path}, key")
            require_texts(parts[1], item, f"{path}.{key}")
    elif isinstance(value, bool | int | float) and (hint is str or set(parts) == {str, type(None)}):
        raise UserError(f"{path}: {value!r} is not a text: write it in quotes, such as '{value}'")


def type_name(hint: Any) -> str:
    """Describe a field's type in words, such as `a whole number or null`."""
    if isinstance(hint, EnumType):
        return "one of the values below"
    return " or ".join(map(_part_name, get_args(hint) if isinstance(hint, UnionType) else (hint,)))


def _is_of_type(hint: Any, value: Any) -> bool:
    """Whether OmegaConf, which takes a hundred times as long, would return the value unchanged."""
    if type(value) is hint:
        return True
    if get_origin(hint) is list:
        (item_type,) = get_args(hint)
        return type(value) is list and all(type(item) is item_type and _is_plain(item) for item in value)
    if not isinstance(hint, UnionType):
        return False
    if value is None:
        return type(None) in get_args(hint)
    return _is_plain(value) and any(_is_of_type(part, value) for part in get_args(hint))


def _is_plain(value: Any) -> bool:
    """Whether OmegaConf reads a value literally: `???` marks a missing value, and `${` begins an interpolation."""
    return not isinstance(value, str) or (value != "???" and "${" not in value)


def _check_numbers(value: Any, path: str) -> None:
    """Raise UserError for integers beyond 64 bits, which no tensor holds, and for NaN, at any depth."""
    if isinstance(value, list | tuple):
        for item in value:
            _check_numbers(item, path)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_numbers(key, path)
            _check_numbers(item, path)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"{path} is an integer of {value.bit_length()} bits; at most 64 are allowed")
    elif isinstance(value, float) and math.isnan(value):
        raise UserError(f"{path} is nan; it must be a number")


def _list_hint(hint: Any, value: Any, path: str) -> str:
    """Return the hint for a single item given in place of a list."""
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if isinstance(value, str | int | float) and any(get_origin(part) is list for part in parts):
        return f": write {path}=[{value}]"
    return ""


@cache
def _leaf_schema(hint: Any) -> type:
    return dataclasses.make_dataclass("Leaf", [("value", hint)])


def _part_name(part: Any) -> str:
    if get_origin(part) is list:
        (element,) = get_args(part)
        return f"a list of {'groups of keys' if dataclasses.is_dataclass(element) else _PLURALS.get(element, element)}"
    if get_origin(part) is dict:
        return "a mapping"
    return "a group of keys" if dataclasses.is_dataclass(part) else _SINGULARS.get(part, str(part))
